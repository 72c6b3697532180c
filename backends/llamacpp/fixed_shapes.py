"""Fixed shapes: what each token is computed together with depends on its own request alone.

llama.cpp's product of a row depends on how many rows are multiplied at once, and its attention on the order
of the cells that it walks over. So the same tokens come out bit for bit only where a sequence has a stream of
its own, and each of its tokens is always computed in a call with the same neighbours: those of a prompt in
tiles that begin at multiples of `TILE`, the last of which ends with the prompt, and each generated token by
itself. Where a step ends inside a tile, the tile is computed whole, and what is too much of it is taken out
again; where one begins inside, it is computed again from its beginning.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import NotSupported
from ..gguf.model_file import GGUFModel
from ..worker import WorkerConfig
from .passes import Share, Work

TILE = 64
"""Tokens of a prompt that are computed at once: most of the speed of more, and few to compute again."""


@dataclass(frozen=True, slots=True)
class FixedShape:
    """The calls that compute one sequence."""

    prompt: int
    """Tokens of its prompt."""
    scored: bool
    """Its prompt's tokens are scored: llama.cpp computes the last layer for the rows that are wanted, so all
    of a tile are, always."""

    def begin(self, position: int) -> int:
        """First position of the call that computes this one."""
        return position if position >= self.prompt else position // TILE * TILE

    def end(self, position: int) -> int:
        """One past the last position of that call."""
        return position + 1 if position >= self.prompt else min(self.prompt, self.begin(position) + TILE)

    def shares(self, work: Work) -> Iterator[Share]:
        """One share per call; the work begins with a call and ends with one."""
        begin = 0
        while begin < len(work.tokens):
            end = self.end(work.first + begin) - work.first
            yield Share(work, begin, end)
            begin = end


def alike(prompt: int, other: int, held: int) -> int:
    """How many of the first `held` positions of one table two prompts of these lengths compute alike."""
    return held if prompt == other else min(held, min(prompt, other) // TILE * TILE)


def require_fixed_shapes(config: WorkerConfig, model: GGUFModel) -> None:
    """Raise NotSupported, naming the reason, where the shapes asked for cannot be fixed."""
    if not config.batch_invariant:
        return
    reason = None
    if config.device != "cpu":
        reason = f"how llama.cpp multiplies on {config.device} is not known"
    elif not model.is_causal:
        reason = "its tokens see those that come after them, and are computed in one batch of any length"
    elif model.shape.recurrent_state:
        reason = "its recurrent layers cannot go back to the beginning of a tile"
    if reason is not None:
        raise NotSupported(f"batch_invariant is True, and {model.path.name} cannot hold it: {reason}")
