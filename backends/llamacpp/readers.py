"""Readers: what becomes of the rows that llama.cpp gives for tokens, as they come call by call."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...scheduler.batch import Chunk, SequenceStart, TokenLogprobs, Wants
from ..answers import Sampler
from ..answers.pooling import Pooler
from ..answers.prompt_scores import PromptPart, PromptScores
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
    """The rows of a chunk that its reader wants."""

    leading: int = 0
    """So many from the first on, passed to `Reader.add` as they come."""
    last: bool = False
    """The one of the last token, which may be a leading one, too."""
    states: bool = False
    """They are hidden states, and the last one is passed to `Reader.add`; else they are logits, and it is
    passed to `Reader.answer`."""


class Reader:
    """Knows what each live sequence is computed for, and makes the answers of its rows.

    Tokens are chosen by logits, which score prompts, too; embeddings are pooled from hidden states.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._prompts = PromptScores(sampler.token_logprobs)
        self._parts: dict[int, PromptPart] = {}
        self._pooler = Pooler()

    def start(self, start: SequenceStart) -> None:
        """A sequence begins under its id, whatever ran under it before."""
        self._sampler.start(start)
        self._prompts.start(start)
        self._pooler.start(start)

    def retire(self, seq: int) -> None:
        """The sequence ends, if it is known."""
        self._sampler.retire(seq)
        self._prompts.retire(seq)
        self._pooler.retire(seq)

    def begin_step(self, chunks: Sequence[Chunk]) -> list[RowsWanted]:
        """The rows wanted of each chunk."""
        self._parts = {part.chunk.seq: part for part in self._prompts.parts(chunks)}
        return [self._wanted(chunk) for chunk in chunks]

    def add(self, seq: int, rows: Rows) -> None:
        """The next leading rows of the sequence's chunk, or the last one of its hidden states."""
        if seq in self._parts:
            self._prompts.add(self._parts[seq], torch.from_numpy(rows))
        else:
            self._pooler.add(seq, rows)

    def answer(self, seqs: Sequence[int], rows: Rows, answers: Answers) -> None:
        """The logits of these sequences' last tokens."""
        sample = self._sampler.sample(torch.from_numpy(rows), seqs)
        answers.tokens.update(zip(seqs, sample.token_ids, strict=True))
        answers.logprobs.update(sample.logprobs)
        answers.errors.update(sample.errors)

    def finish(self, chunks: Sequence[Chunk], answers: Answers) -> None:
        """All rows of these chunks have come."""
        for chunk in chunks:
            if chunk.seq in self._parts:
                answers.prompt_logprobs[chunk.seq] = self._prompts.finish(self._parts[chunk.seq])
        pooled = self._pooler.answer(chunks)
        answers.embeddings.update(pooled.embeddings)
        answers.errors.update(pooled.errors)

    def _wanted(self, chunk: Chunk) -> RowsWanted:
        pooled = self._pooler.rows_of(chunk)
        if not pooled:
            part = self._parts.get(chunk.seq)
            return RowsWanted(0 if part is None else len(part.predicted), chunk.wants is Wants.TOKEN)
        # Rows are the first ones of a chunk, or its last one.
        return RowsWanted(0, True, True) if pooled.start else RowsWanted(len(pooled), False, True)
