"""Readers: what becomes of the rows that llama.cpp gives for tokens, as they come call by call."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ...errors import WorkerError
from ...scheduler.batch import SequenceStart, Slice, TokenLogprobs, Wants
from ..pooling import Pooler
from ..sampling import Sampler
from ..torch.prompt_scores import PromptPart, PromptScores
from .context import Rows


@dataclass(slots=True)
class Answers:
    """What the calls of one step have given so far, by sequence."""

    tokens: dict[int, int | None] = field(default_factory=dict)
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs | None, ...]] = field(default_factory=dict)
    embeddings: dict[int, tuple[float, ...]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    unplaced: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class RowsWanted:
    """The rows of a slice that its reader wants."""

    leading: int = 0
    """So many from the first on, passed to `Reader.add` as they come."""
    last: bool = False
    """The one of the last token, passed to `Reader.answer`; it may be a leading one, too."""


class Reader(Protocol):
    """Knows what each live sequence is computed for, and makes the answers of its rows."""

    def start(self, start: SequenceStart) -> None:
        """A sequence begins under its id, whatever ran under it before."""

    def retire(self, seq: int) -> None:
        """The sequence ends, if it is known."""

    def begin_step(self, slices: Sequence[Slice]) -> list[RowsWanted]:
        """The rows wanted of each slice."""

    def add(self, seq: int, rows: Rows) -> None:
        """The next leading rows of the sequence's slice."""

    def answer(self, seqs: Sequence[int], rows: Rows, answers: Answers) -> None:
        """The last rows of these sequences' slices."""

    def finish(self, pieces: Sequence[Slice], answers: Answers) -> None:
        """All rows of these slices have come."""


class TokenReader:
    """Chooses tokens by their logits, and scores prompts. Implements Reader."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._prompts = PromptScores(sampler.token_logprobs)
        self._parts: dict[int, PromptPart] = {}

    def start(self, start: SequenceStart) -> None:
        """See `Reader`."""
        self._sampler.start(start)
        self._prompts.start(start)

    def retire(self, seq: int) -> None:
        """See `Reader`."""
        self._sampler.retire(seq)
        self._prompts.retire(seq)

    def begin_step(self, slices: Sequence[Slice]) -> list[RowsWanted]:
        """See `Reader`."""
        self._parts = {part.piece.seq: part for part in self._prompts.parts(slices)}
        scored = {seq: len(part.predicted) for seq, part in self._parts.items()}
        return [RowsWanted(scored.get(piece.seq, 0), piece.wants is Wants.TOKEN) for piece in slices]

    def add(self, seq: int, rows: Rows) -> None:
        """See `Reader`."""
        self._prompts.add(self._parts[seq], torch.from_numpy(rows))

    def answer(self, seqs: Sequence[int], rows: Rows, answers: Answers) -> None:
        """See `Reader`."""
        sample = self._sampler.sample(torch.from_numpy(rows), seqs)
        answers.tokens.update(zip(seqs, sample.token_ids, strict=True))
        answers.logprobs.update(sample.logprobs)
        answers.errors.update(sample.errors)

    def finish(self, pieces: Sequence[Slice], answers: Answers) -> None:
        """See `Reader`."""
        for piece in pieces:
            if piece.seq in self._parts:
                answers.prompt_logprobs[piece.seq] = self._prompts.finish(self._parts[piece.seq])


class EmbeddingReader:
    """Pools hidden states. Implements Reader."""

    def __init__(self) -> None:
        self._pooler = Pooler()

    def start(self, start: SequenceStart) -> None:
        """See `Reader`."""
        self._pooler.start(start)

    def retire(self, seq: int) -> None:
        """See `Reader`."""
        self._pooler.retire(seq)

    def begin_step(self, slices: Sequence[Slice]) -> list[RowsWanted]:
        """See `Reader`."""
        return [
            RowsWanted(len(piece.tokens) if self._pooler.wants_rows(piece.seq) else 0) for piece in slices
        ]

    def add(self, seq: int, rows: Rows) -> None:
        """See `Reader`."""
        self._pooler.add(seq, rows)

    def answer(self, seqs: Sequence[int], rows: Rows, answers: Answers) -> None:
        """Never called: no last row is wanted."""
        raise WorkerError("a model that gives embeddings was asked for a token")

    def finish(self, pieces: Sequence[Slice], answers: Answers) -> None:
        """See `Reader`."""
        for piece in pieces:
            if piece.wants is not Wants.EMBEDDING:
                continue
            vector = self._pooler.finish(piece.seq, piece.start + len(piece.tokens))
            if np.isfinite(vector).all():
                answers.embeddings[piece.seq] = vector
            else:
                answers.errors[piece.seq] = "The model's hidden states are not finite numbers."
