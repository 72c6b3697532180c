"""The check that a model computes on the paged cache, in chunks, what it computes by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.step_inputs import StepInputs

CHECK_TOKENS = 12
"""Length of each of the two sequences."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference of logits, relative to their spread, that rounding can be blamed for."""
NOISE_FACTOR = 4
"""In the shorter dtypes: by how much more rows may differ than those that begin a step and a sequence."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the paged logits are from the model's own, and how far they may be."""

    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False, too, where logits are no numbers."""
        return self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class Check:
    """Two sequences, whole and in packed chunks: both begin, then one goes on and the other ends.

    A model that takes the order of a step's tokens for their positions, or lets neighbours in a step see each
    other outside of attention, is right in the first rows alone: those of the first chunk.
    """

    whole: Mapping[str, Tensor]
    """`input_ids` and `position_ids` [2, n]."""
    steps: tuple[StepInputs, ...]
    order: Tensor
    """[R] int64: the row of `whole`, flattened, of each row of logits, one step after another."""
    first_rows: int
    """Rows of logits of the first chunk."""
    num_blocks: int

    @classmethod
    def of(cls, vocab_size: int, max_length: int, block_size: int, device: torch.device) -> "Check":
        """A check for a vocabulary and a cache."""
        n = min(CHECK_TOKENS, max_length)
        positions = torch.arange(n, device=device)
        tokens = torch.arange(2 * n, device=device).mul(7919).add(101).remainder(vocab_size).view(2, n)
        tables = torch.arange(2 * -(-n // block_size), device=device).view(-1, 2).T.flip(0)
        third = n // 3
        chunks = (((0, 0, n - 1), (1, 0, third)), ((1, third, n), (0, n - 1, n)))
        steps = tuple(_step(tokens, tables, block_size, step) for step in chunks)
        order = torch.cat([torch.cat([positions[a:b] + n * i for i, a, b in step])[1:] for step in chunks])
        whole = {"input_ids": tokens, "position_ids": positions.expand(2, n)}
        return cls(whole, steps, order, n - 2, tables.numel())

    def compare(self, found: Tensor, expected: Tensor, dtype: torch.dtype) -> Comparison:
        """Compare the steps' logits [R, vocab] with those of the whole [2 n, vocab], computed in `dtype`.

        In float32 every row counts. In the shorter dtypes single rows may go far astray (a router of experts
        that decides otherwise), so a quarter of the rows is left out, and the first rows tell the noise.
        """
        expected = expected[self.order]
        spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
        rows = (found - expected).norm(dim=-1) / spread.clamp(min=torch.finfo(torch.float32).tiny)
        if dtype == torch.float32:
            return Comparison(float(rows.max()), TOLERANCE[dtype])
        first, packed = rows[: self.first_rows].quantile(0.75), rows[self.first_rows :].quantile(0.75)
        noise = max(float(first), torch.finfo(dtype).eps)
        allowed = min(TOLERANCE[dtype], NOISE_FACTOR * noise)
        return Comparison(float(torch.maximum(first, packed)), allowed)


def _step(
    tokens: Tensor, tables: Tensor, block_size: int, chunks: Sequence[tuple[int, int, int]]
) -> StepInputs:
    """Packed inputs of `chunks` (sequence, first position, end), with logits for all rows but the first."""
    positions = torch.cat([torch.arange(a, b, device=tokens.device) for _, a, b in chunks])
    ends = torch.tensor([b - a for _, a, b in chunks]).cumsum(0).tolist()
    sequences = torch.cat([torch.full((b - a,), i, device=tokens.device) for i, a, b in chunks])
    return StepInputs(
        token_ids=tokens[sequences, positions],
        positions=positions,
        slot_mapping=tables[sequences, positions // block_size] * block_size + positions % block_size,
        query_starts=(0, *ends),
        context_lengths=tuple(b for _, _, b in chunks),
        block_tables=tables[[i for i, _, _ in chunks]],
        logit_rows=torch.arange(1, len(positions), device=tokens.device),
        state_rows=torch.arange(0, device=tokens.device),
        sequence_ids=tuple(i for i, _, _ in chunks),
    )
