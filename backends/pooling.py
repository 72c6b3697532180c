"""Pooler: turns the last hidden states of a sequence, as they come in pieces, into one vector."""

import numpy as np
from numpy.typing import NDArray

from ..errors import WorkerError
from ..scheduler.batch import Pooling, SequenceStart

Rows = NDArray[np.float32]


class Pooler:
    """The sequences that want an embedding, and the sum, first or last of their rows so far.

    Rows of a sequence come in the order of its positions. Sums are in float64, so that the pieces they came
    in leave no trace.
    """

    def __init__(self) -> None:
        self._pooling: dict[int, Pooling] = {}
        self._rows: dict[int, int] = {}
        self._vectors: dict[int, NDArray[np.float64]] = {}

    def start(self, start: SequenceStart) -> None:
        """A sequence begins under its id, whatever ran under it before."""
        self.retire(start.seq)
        if start.pooling is not None:
            self._pooling[start.seq] = start.pooling

    def retire(self, seq: int) -> None:
        """The sequence ends, if it is known."""
        for known in (self._pooling, self._rows, self._vectors):
            known.pop(seq, None)

    def wants_rows(self, seq: int) -> bool:
        """Whether the sequence is to be pooled."""
        return seq in self._pooling

    def add(self, seq: int, rows: Rows) -> None:
        """The next rows [n, size] of a sequence."""
        pooling = self._pooling[seq]
        if pooling is Pooling.MEAN:
            total = rows.sum(axis=0, dtype=np.float64)
            self._vectors[seq] = self._vectors[seq] + total if seq in self._vectors else total
        elif pooling is Pooling.LAST:
            self._vectors[seq] = rows[-1].astype(np.float64)
        elif seq not in self._vectors:
            self._vectors[seq] = rows[0].astype(np.float64)
        self._rows[seq] = self._rows.get(seq, 0) + len(rows)

    def finish(self, seq: int, length: int) -> tuple[float, ...]:
        """The vector of a sequence of `length` tokens, all of whose rows have come; it may hold non-numbers.

        Raises:
            WorkerError: rows are missing.
        """
        rows = self._rows.get(seq, 0)
        if rows != length:
            raise WorkerError(f"sequence {seq} has {length} tokens; {rows} were computed for its embedding")
        vector = self._vectors[seq]
        if self._pooling[seq] is Pooling.MEAN:
            vector = vector / length
        return tuple(vector.tolist())
