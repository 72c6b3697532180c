"""The memory plan of a model: made from numbers alone, before anything is allocated."""

import msgspec

from ..backends.machine.hardware import MemoryLimit
from ..backends.worker import MemoryNeeds
from ..errors import InsufficientMemory
from .config import ModelConfig

_GIB = 1 << 30


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model will take, in bytes, and how many blocks and tokens that gives it."""

    limit_bytes: int
    """What the process or the device may use in all."""
    used_bytes: int
    """What was in use when the plan was made."""
    source: str
    """Where the limit comes from."""
    memory_fraction: float
    weights: int
    activations: int
    kv_per_block: int
    block_size: int
    num_blocks: int
    max_length: int
    cache_grows: bool
    """There is room to make the cache small and move it into a larger one as it fills."""

    @property
    def total(self) -> int:
        """Bytes this model will take."""
        return self.weights + self.activations + self.num_blocks * self.kv_per_block

    def describe(self) -> str:
        """The plan in one sentence."""
        kv = self.num_blocks * self.kv_per_block
        return (
            f"weights {gib(self.weights)} + activations {gib(self.activations)} + KV cache {gib(kv)} "
            f"({self.num_blocks} blocks of {self.block_size} tokens) = {gib(self.total)} "
            f"of {gib(self.limit_bytes)} ({self.source}), {gib(self.used_bytes)} of it in use before; "
            f"requests up to {self.max_length} tokens"
        )


def gib(count: int) -> str:
    """Bytes as a short text."""
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / (1 << 20):.1f} MiB"


def plan_memory(
    name: str, needs: MemoryNeeds, limit: MemoryLimit, config: ModelConfig, longest: int
) -> MemoryPlan:
    """Choose the number of blocks, and the length of requests where that is left open.

    By default the pool holds what requests can use, which is every sequence at full length; where others
    use the memory, too, at most `POOL_SHARE` of what is left of it. It holds one sequence of full length in
    any case; where that does not fit and the length was not asked for, the length shrinks to what fits.

    Args:
        longest: tokens of the longest request that the model was made for.

    Raises:
        InsufficientMemory: with the numbers and the settings that would make it fit.
    """
    block_size = config.block_size
    max_length = config.max_length or longest
    available = int(limit.limit_bytes * config.memory_fraction) - limit.used_bytes
    left = max(available - needs.weights - needs.activations, 0)
    fitting = left // needs.kv_per_block
    one_sequence = -(-max_length // block_size)
    if config.num_blocks is None:
        share = int(fitting * POOL_SHARE) if limit.shared else fitting
        chosen = min(one_sequence * config.max_num_seqs, max(share, min(one_sequence, fitting)))
        if config.max_length is None and chosen < one_sequence:
            one_sequence = max(chosen, min(one_sequence, -(-_SHORTEST_AUTO_LENGTH // block_size)))
            max_length = min(max_length, one_sequence * block_size)
    else:
        chosen = config.num_blocks
        one_sequence = min(one_sequence, chosen)
        max_length = min(max_length, chosen * block_size) if config.max_length is None else max_length
    plan = MemoryPlan(
        limit_bytes=limit.limit_bytes,
        used_bytes=limit.used_bytes,
        source=limit.source,
        memory_fraction=config.memory_fraction,
        weights=needs.weights,
        activations=needs.activations,
        kv_per_block=needs.kv_per_block,
        block_size=block_size,
        num_blocks=max(chosen, one_sequence),
        max_length=max_length,
        cache_grows=limit.shared and config.num_blocks is None and chosen <= fitting * POOL_SHARE,
    )
    if not one_sequence <= chosen <= fitting:
        raise InsufficientMemory(_advice(name, plan, fitting))
    return plan


POOL_SHARE = 0.5
"""Most of the memory left that a pool nobody gave a size takes, where others use that memory, too.

A cache that is made anew twice as large, and moved, needs as much again for that moment."""
_SHORTEST_AUTO_LENGTH = 512
"""Tokens below which a length nobody asked for is refused instead of shrunk to."""


def _advice(name: str, plan: MemoryPlan, fitting: int) -> str:
    """Why `plan` does not fit, and what would."""
    allowed = int(plan.limit_bytes * plan.memory_fraction)
    kv = plan.num_blocks * plan.kv_per_block
    sentence = (
        f"{name} does not fit: it needs {gib(plan.weights)} for weights, {gib(plan.activations)} for a step "
        f"and {gib(kv)} for {plan.num_blocks} KV blocks of {plan.block_size} tokens, but memory_fraction="
        f"{plan.memory_fraction} allows {gib(allowed)} of {gib(plan.limit_bytes)} ({plan.source}), of which "
        f"{gib(plan.used_bytes)} are in use"
    )
    if fitting > 1:
        return (
            f"{sentence}; it fits with max_length={fitting * plan.block_size}, a smaller "
            "max_num_batched_tokens or max_num_seqs, or a larger memory_fraction"
        )
    return (
        f"{sentence}; a smaller max_num_batched_tokens, a 16-bit dtype, releasing another model or more "
        "memory would make room"
    )
