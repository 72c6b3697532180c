"""What every engine is asked: token ids and lengths that depend on the vocabulary's size and nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import InvalidArgument
from .runners.protocol import Asked

_FIRST_ID = 16
"""Smallest token id of a prompt; special tokens often lie below."""
_SEED = 0
_WARMUP_SEED = 1
_LEVELS_SEED = 2
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

    def first(self, count: int) -> "Workload":
        """The same with the first of its requests only."""
        return replace(self, requests=self.requests[:count])

    def scaled(self, scale: float) -> "Workload":
        """The same with the first of its requests only: that share of them, at least one.

        Raises:
            InvalidArgument: the share is not above 0, or above 1.
        """
        if not 0 < scale <= 1:
            raise InvalidArgument("scale", scale, "above 0, at most 1")
        return self.first(max(1, round(len(self.requests) * scale)))


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
    level_output_len: int = 32


WORKLOADS = ("w1", "w2", "w3", "w4-warm", "w4-cold", "w4-off")
LEVELS = (1, 8, 32, 64)
"""Numbers of requests at once at which prompts and outputs are measured apart."""
LEVEL_WORKLOADS = tuple(f"{kind}-{level}" for level in LEVELS for kind in ("prefill", "decode"))


def make_workloads(vocab_size: int, lengths: Lengths | None = None) -> dict[str, Workload]:
    """All workloads, by name: WORKLOADS and LEVEL_WORKLOADS.

    Args:
        vocab_size: of the model; prompts are random ids below it.
    """
    sizes = Lengths() if lengths is None else lengths
    draw = _Draw(vocab_size, _SEED)
    other = _Draw(vocab_size, _WARMUP_SEED)
    warmup = [other.asked(_WARMUP_LEN, _WARMUP_OUTPUT_LEN) for _ in range(_WARMUP_REQUESTS)]
    made = [
        *_at_once(draw, sizes, warmup),
        _mixed(draw, sizes, warmup),
        *_sharing(draw, sizes, warmup),
        *_levels(_Draw(vocab_size, _LEVELS_SEED), sizes, warmup),
    ]
    return {workload.name: workload for workload in made}


def _at_once(draw: "_Draw", sizes: Lengths, warmup: list[Asked]) -> Iterator[Workload]:
    requests = [draw.asked(sizes.input_len, sizes.output_len) for _ in range(sizes.at_once)]
    tokens = f"{sizes.input_len}+{sizes.output_len}"
    yield Workload(
        name="w1",
        description=f"{sizes.at_once} requests of {tokens} tokens at once",
        requests=requests,
        in_flight=sizes.at_once,
        warmup=warmup,
    )
    yield Workload(
        name="w2",
        description=f"one request of {tokens} tokens",
        requests=requests[:1],
        in_flight=1,
        warmup=warmup[:1],
    )


def _mixed(draw: "_Draw", sizes: Lengths, warmup: list[Asked]) -> Workload:
    low, high = sizes.mixed_input
    shortest, longest = sizes.mixed_output
    return Workload(
        name="w3",
        description=f"{sizes.mixed} requests, prompts {low} to {high}, outputs {shortest} to {longest} "
        f"tokens, at most {sizes.mixed_in_flight} at a time",
        requests=[
            draw.asked(draw.between(low, high), draw.between(shortest, longest)) for _ in range(sizes.mixed)
        ],
        in_flight=sizes.mixed_in_flight,
        warmup=warmup,
    )


def _sharing(draw: "_Draw", sizes: Lengths, warmup: list[Asked]) -> Iterator[Workload]:
    prefix = draw.ids(sizes.shared_len)
    one, *requests = (
        draw.asked(sizes.input_len, sizes.shared_output_len, prefix) for _ in range(sizes.at_once + 1)
    )
    alike = (
        f"{sizes.at_once} requests of {sizes.input_len}+{sizes.shared_output_len} tokens at once, the first "
        f"{sizes.shared_len} of each the same"
    )
    for how, description, cache, earlier in (
        ("warm", "one such request has been served before", True, [one]),
        ("cold", "the prefix cache is empty", True, []),
        ("off", "without a prefix cache", False, []),
    ):
        yield Workload(
            name=f"w4-{how}",
            description=f"{alike}: {description}",
            requests=requests,
            in_flight=sizes.at_once,
            prefix_cache=cache,
            shared_len=sizes.shared_len,
            earlier=earlier,
            warmup=warmup,
        )


def _levels(draw: "_Draw", sizes: Lengths, warmup: list[Asked]) -> Iterator[Workload]:
    prompts = [draw.ids(sizes.input_len) for _ in range(max(LEVELS))]
    for level in LEVELS:
        for kind, output_len in (("prefill", 1), ("decode", sizes.level_output_len)):
            yield Workload(
                name=f"{kind}-{level}",
                description=f"{level} of {sizes.input_len}+{output_len} tokens at once",
                requests=[Asked(prompt, output_len) for prompt in prompts[:level]],
                in_flight=level,
                warmup=warmup[:level],
            )


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
