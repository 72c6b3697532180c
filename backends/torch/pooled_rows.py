"""Which rows of a packed step are pooled, and how they come to the pooler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...scheduler.batch import Chunk
from ..answers.pooling import Pooler, Rows


@dataclass(frozen=True, slots=True)
class PooledRows:
    """The rows of a step whose hidden states are wanted, chunk after chunk."""

    rows: list[int]
    """Ascending rows of the step's packed tokens."""
    counts: list[tuple[int, int]]
    """(sequence, how many of `rows` are its own)."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk], pooler: Pooler) -> "PooledRows":
        """What the pooler needs of the chunks, packed one after the other."""
        rows: list[int] = []
        counts = []
        begin = 0
        for chunk in chunks:
            wanted = pooler.rows_of(chunk)
            if wanted:
                rows += range(begin + wanted.start, begin + wanted.stop)
                counts.append((chunk.seq, len(wanted)))
            begin += len(chunk.tokens)
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
