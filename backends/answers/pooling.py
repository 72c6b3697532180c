"""Pooler: turns the last hidden states of a sequence, as they come in chunks, into one vector."""

from collections.abc import Iterable
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import WorkerError
from ...scheduler.batch import Chunk, Pooling, SequenceStart, Wants

Rows = NDArray[np.float32]
Vector = NDArray[np.float64]
NOT_FINITE = "The model's hidden states are not finite numbers."


class Projection(Protocol):
    """What a model does to a pooled vector before it is an embedding."""

    def __call__(self, vector: Vector) -> Vector:
        """[hidden] -> [size]."""


class Pooled(msgspec.Struct, frozen=True):
    """The embeddings of a step, and what became of sequences that have none; by sequence id."""

    embeddings: dict[int, tuple[float, ...]]
    errors: dict[int, str]


class Pooler:
    """The sequences that want an embedding, and the sum, first or last of their rows so far.

    Rows of a sequence come in the order of its positions. Sums are in float64, so that the chunks they came
    in leave no trace.
    """

    def __init__(self, projection: Projection | None = None) -> None:
        self._projection = projection
        self._pooling: dict[int, Pooling] = {}
        self._rows: dict[int, int] = {}
        self._vectors: dict[int, Vector] = {}

    def start(self, start: SequenceStart) -> None:
        """A sequence begins under its id, whatever ran under it before."""
        self.retire(start.seq)
        if start.pooling is not None:
            self._pooling[start.seq] = start.pooling

    def retire(self, seq: int) -> None:
        """The sequence ends, if it is known."""
        for known in (self._pooling, self._rows, self._vectors):
            known.pop(seq, None)

    def rows_of(self, chunk: Chunk) -> range:
        """The rows that pooling needs of a chunk, counted in its tokens; none of one that is not pooled."""
        pooling = self._pooling.get(chunk.seq)
        count = len(chunk.tokens)
        if pooling is Pooling.MEAN:
            return range(count)
        if pooling is Pooling.CLS and chunk.start == 0:
            return range(1)
        if pooling is Pooling.LAST and chunk.wants is Wants.EMBEDDING:
            return range(count - 1, count)
        return range(0)

    def add(self, seq: int, rows: Rows) -> None:
        """The next rows [n, hidden] of a sequence: those of `rows_of`, or more than these."""
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

        A mean is of all its tokens. The last row is there also where others were never computed, because
        the sequence began behind a prefix from the cache.

        Raises:
            WorkerError: rows are missing.
        """
        rows, is_mean = self._rows.get(seq, 0), self._pooling[seq] is Pooling.MEAN
        if rows != length if is_mean else rows == 0:
            raise WorkerError(f"sequence {seq} has {length} tokens; {rows} were computed for its embedding")
        vector = self._vectors[seq] / length if is_mean else self._vectors[seq]
        if self._projection is not None:
            vector = self._projection(vector)
        return tuple(vector.tolist())

    def answer(self, chunks: Iterable[Chunk]) -> Pooled:
        """The embeddings of those chunks that want one, all of whose rows have come."""
        pooled = Pooled({}, {})
        for chunk in chunks:
            if chunk.wants is not Wants.EMBEDDING:
                continue
            vector = self.finish(chunk.seq, chunk.start + len(chunk.tokens))
            if np.isfinite(vector).all():
                pooled.embeddings[chunk.seq] = vector
            else:
                pooled.errors[chunk.seq] = NOT_FINITE
        return pooled
