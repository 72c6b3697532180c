"""What every engine is asked: token ids and lengths that depend on the vocabulary's size and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import InvalidArgument
from .runners.protocol import Asked

_FIRST_ID = 16
"""Smallest token id of a prompt; special tokens often lie below."""
_SEED = 0
_WARMUP_SEED = 1
_WARMUP_LEN = 32
_WARMUP_OUTPUT_LEN = 4
_WARMUP_REQUESTS = 2


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests, and how they come."""

    name: str
    description: str
    requests: list[Asked]
    in_flight: int
    """At most so many of them at a time."""
    prefix_cache: bool | None = None
    """Whether engines that have one use theirs; None: as they would by default."""
    shared_len: int = 0
    earlier: list[Asked] = field(default_factory=list)
    """Requests that were served before and have filled the prefix cache."""
    warmup: list[Asked] = field(default_factory=list)

    @property
    def max_length(self) -> int:
        """Prompt and output of the longest request."""
        return max(len(asked.token_ids) + asked.output_len for asked in [*self.requests, *self.warmup])

    def scaled(self, scale: float) -> "Workload":
        """The same with the first of its requests only: that share of them, at least one.

        Raises:
            InvalidArgument: the share is not above 0, or above 1.
        """
        if not 0 < scale <= 1:
            raise InvalidArgument("scale", scale, "above 0, at most 1")
        count = max(1, round(len(self.requests) * scale))
        return Workload(
            name=self.name,
            description=self.description,
            requests=self.requests[:count],
            in_flight=self.in_flight,
            prefix_cache=self.prefix_cache,
            shared_len=self.shared_len,
            earlier=self.earlier,
            warmup=self.warmup,
        )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Numbers that the workloads are made of; the defaults are those of the published tables."""

    at_once: int = 64
    input_len: int = 512
    output_len: int = 128
    mixed: int = 96
    mixed_in_flight: int = 32
    mixed_input: tuple[int, int] = (32, 768)
    """Shortest and longest prompt."""
    mixed_output: tuple[int, int] = (16, 192)
    shared_len: int = 448
    shared_output_len: int = 32


WORKLOADS = ("w1", "w2", "w3", "w4-warm", "w4-cold", "w4-off")


def make_workloads(vocab_size: int, lengths: Lengths | None = None) -> dict[str, Workload]:
    """All workloads, by name.

    Args:
        vocab_size: of the model; prompts are random ids below it.
    """
    sizes = Lengths() if lengths is None else lengths
    draw = _Draw(vocab_size, _SEED)
    at_once = [draw.asked(sizes.input_len, sizes.output_len) for _ in range(sizes.at_once)]
    mixed = [
        draw.asked(draw.between(*sizes.mixed_input), draw.between(*sizes.mixed_output))
        for _ in range(sizes.mixed)
    ]
    prefix = draw.ids(sizes.shared_len)
    one, *sharing = (
        draw.asked(sizes.input_len, sizes.shared_output_len, prefix) for _ in range(sizes.at_once + 1)
    )
    other = _Draw(vocab_size, _WARMUP_SEED)
    warmup = [other.asked(_WARMUP_LEN, _WARMUP_OUTPUT_LEN) for _ in range(_WARMUP_REQUESTS)]
    tokens = f"{sizes.input_len}+{sizes.output_len}"
    low, high = sizes.mixed_input
    shortest, longest = sizes.mixed_output
    alike = (
        f"{sizes.at_once} requests of {sizes.input_len}+{sizes.shared_output_len} tokens at once, the first "
        f"{sizes.shared_len} of each the same"
    )

    def sharing_them(name: str, how: str, cache: bool, earlier: Sequence[Asked]) -> Workload:
        return Workload(
            name=name,
            description=f"{alike}: {how}",
            requests=sharing,
            in_flight=sizes.at_once,
            prefix_cache=cache,
            shared_len=sizes.shared_len,
            earlier=list(earlier),
            warmup=warmup,
        )

    made = [
        Workload(
            name="w1",
            description=f"{sizes.at_once} requests of {tokens} tokens at once",
            requests=at_once,
            in_flight=sizes.at_once,
            warmup=warmup,
        ),
        Workload(
            name="w2",
            description=f"one request of {tokens} tokens",
            requests=at_once[:1],
            in_flight=1,
            warmup=warmup[:1],
        ),
        Workload(
            name="w3",
            description=f"{sizes.mixed} requests, prompts {low} to {high}, outputs {shortest} to {longest} "
            f"tokens, at most {sizes.mixed_in_flight} at a time",
            requests=mixed,
            in_flight=sizes.mixed_in_flight,
            warmup=warmup,
        ),
        sharing_them("w4-warm", "one such request has been served before", True, [one]),
        sharing_them("w4-cold", "the prefix cache is empty", True, []),
        sharing_them("w4-off", "without a prefix cache", False, []),
    ]
    return {workload.name: workload for workload in made}


class _Draw:
    """Random numbers that every version of numpy draws alike."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        if vocab_size <= _FIRST_ID:
            raise InvalidArgument("vocab_size", vocab_size, f"above {_FIRST_ID}")
        self._vocab_size = vocab_size
        self._bits = np.random.PCG64(seed)

    def between(self, low: int, high: int) -> int:
        """A number from low to high, both allowed."""
        return low + int(self._bits.random_raw() % (high - low + 1))

    def ids(self, count: int) -> list[int]:
        """Token ids."""
        return [self.between(_FIRST_ID, self._vocab_size - 1) for _ in range(count)]

    def asked(self, input_len: int, output_len: int, prefix: Sequence[int] = ()) -> Asked:
        """A request whose prompt begins with `prefix`."""
        return Asked([*prefix, *self.ids(input_len - len(prefix))], output_len)
