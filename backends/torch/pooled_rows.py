"""Which rows of a packed step are pooled, and how they come to the pooler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...scheduler.batch import Slice
from ..answers.pooling import Pooler, Rows


@dataclass(frozen=True, slots=True)
class PooledRows:
    """The rows of a step whose hidden states are wanted, slice after slice."""

    rows: list[int]
    """Ascending rows of the step's packed tokens."""
    counts: list[tuple[int, int]]
    """(sequence, how many of `rows` are its own)."""

    @classmethod
    def of(cls, slices: Sequence[Slice], pooler: Pooler) -> "PooledRows":
        """What the pooler needs of the slices, packed one after the other."""
        rows: list[int] = []
        counts = []
        begin = 0
        for piece in slices:
            wanted = pooler.rows_of(piece)
            if wanted:
                rows += range(begin + wanted.start, begin + wanted.stop)
                counts.append((piece.seq, len(wanted)))
            begin += len(piece.tokens)
        return cls(rows, counts)

    def hand_over(self, states: Tensor, pooler: Pooler) -> None:
        """Give the pooler the hidden states [len(rows), hidden] of these rows."""
        if not self.rows:
            return
        values = to_rows(states)
        begin = 0
        for seq, count in self.counts:
            pooler.add(seq, values[begin : begin + count])
            begin += count


def to_rows(states: Tensor) -> Rows:
    """Hidden states of any type and device, as the pooler takes them."""
    rows: Rows = np.asarray(states.float().cpu().numpy(), np.float32)
    return rows
