"""The memory plan of a model: made from numbers alone, before anything is allocated."""

import msgspec

from ..backends.worker import MemoryNeeds
from ..errors import InsufficientMemory

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
    name: str,
    needs: MemoryNeeds,
    *,
    limit_bytes: int,
    used_bytes: int,
    source: str,
    memory_fraction: float,
    block_size: int,
    num_blocks: int | None,
    max_length: int,
    max_length_is_auto: bool,
    max_num_seqs: int,
) -> MemoryPlan:
    """Choose the number of blocks, and the length of requests where that is left open.

    By default the pool holds every sequence at full length, or as much of that as fits. It holds at least
    one sequence of `max_length` tokens; where that does not fit and the length was not asked for, the
    length shrinks to what fits.

    Raises:
        InsufficientMemory: with the numbers and the settings that would make it fit.
    """

    def plan(blocks: int) -> MemoryPlan:
        return MemoryPlan(
            limit_bytes=limit_bytes,
            used_bytes=used_bytes,
            source=source,
            memory_fraction=memory_fraction,
            weights=needs.weights,
            activations=needs.activations,
            kv_per_block=needs.kv_per_block,
            block_size=block_size,
            num_blocks=blocks,
            max_length=max_length,
        )

    available = int(limit_bytes * memory_fraction) - used_bytes - needs.weights - needs.activations
    fitting = max(available, 0) // needs.kv_per_block
    one_sequence = -(-max_length // block_size)
    wanted = num_blocks if num_blocks is not None else one_sequence * max_num_seqs
    if num_blocks is None:
        chosen = min(wanted, fitting)
    else:
        chosen = num_blocks
        one_sequence = min(one_sequence, num_blocks)
        max_length = min(max_length, num_blocks * block_size) if max_length_is_auto else max_length
    if max_length_is_auto and num_blocks is None and chosen < one_sequence:
        one_sequence = max(chosen, min(one_sequence, -(-_SHORTEST_AUTO_LENGTH // block_size)))
        max_length = min(max_length, one_sequence * block_size)
    if chosen < one_sequence or chosen > fitting:
        raise InsufficientMemory(_advice(name, plan(max(chosen, one_sequence)), fitting))
    return plan(chosen)


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
