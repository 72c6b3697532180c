"""PromptScores: log-probabilities of the prompts of the sequences that asked for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ...scheduler.batch import Chunk, SequenceStart, TokenLogprobs, Wants

if TYPE_CHECKING:
    from torch import Tensor

MAX_ROWS = 128
"""Most rows of logits that prompts may take in one pass of the model."""

Score: TypeAlias = "Callable[[Tensor, Sequence[int], int], list[TokenLogprobs]]"
"""Of (logits [K, vocab], the K tokens they predict, number of alternatives)."""


@dataclass(slots=True)
class _Prompt:
    start: SequenceStart
    next_token: TokenLogprobs | None = None
    """Of the first prompt token that no chunk brought yet; None at the start, which nothing predicts."""


@dataclass(slots=True)
class PromptPart:
    """What one chunk adds to its prompt's log-probabilities, filled row by row."""

    chunk: Chunk
    first_row: int
    """Row of the chunk's first token among all tokens of the step."""
    predicted: tuple[int, ...]
    """Token k of these is predicted by the chunk's k-th row."""
    top: int
    scores: list[TokenLogprobs] = field(default_factory=list)

    def remaining(self) -> Iterator[tuple[Chunk, int]]:
        """Pieces to compute once more, and how many rows of each to score.

        They reach to the end of the chunk, because a step may forget what stands behind its last token.
        """
        done, tokens = len(self.scores), self.chunk.tokens
        if done == len(self.predicted):
            return
        for begin in range(done, len(tokens), MAX_ROWS):
            end = min(begin + MAX_ROWS, len(tokens))
            chunk = Chunk(
                self.chunk.seq, tokens[begin:end], self.chunk.start + begin, self.chunk.blocks, Wants.NOTHING
            )
            yield chunk, max(0, min(end, len(self.predicted)) - begin)


class PromptScores:
    """Knows the prompts that are to be scored; a row of logits is used up before the next pass is made."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._prompts: dict[int, _Prompt] = {}

    def start(self, start: SequenceStart) -> None:
        """A sequence begins, be it under an id that is live: a step that failed leaves such behind."""
        self.retire(start.seq)
        if start.params.prompt_logprobs is not None:
            self._prompts[start.seq] = _Prompt(start)

    def retire(self, seq: int) -> None:
        """A sequence ends."""
        self._prompts.pop(seq, None)

    def parts(self, chunks: Sequence[Chunk]) -> list[PromptPart]:
        """The chunks that bring tokens of a prompt to be scored."""
        if not self._prompts:
            return []
        parts = []
        row = 0
        for chunk in chunks:
            prompt = self._prompts.get(chunk.seq)
            if prompt is not None and chunk.start < prompt.start.num_prompt_tokens:
                end = min(chunk.start + len(chunk.tokens) + 1, prompt.start.num_prompt_tokens)
                predicted = prompt.start.token_ids[chunk.start + 1 : end]
                top = prompt.start.params.prompt_logprobs
                parts.append(PromptPart(chunk, row, predicted, top or 0))
            row += len(chunk.tokens)
        return parts

    def add(self, part: PromptPart, logits: "Tensor") -> None:
        """Score the next rows of a part: `logits` [K, vocab]."""
        done = len(part.scores)
        part.scores += self._score(logits, part.predicted[done : done + logits.shape[0]], part.top)

    def finish(self, part: PromptPart) -> tuple[TokenLogprobs | None, ...]:
        """Entries of the chunk's prompt tokens, once all of its rows are scored."""
        prompt = self._prompts[part.chunk.seq]
        entries = [prompt.next_token, *part.scores]
        count = min(len(part.chunk.tokens), prompt.start.num_prompt_tokens - part.chunk.start)
        if len(entries) > count:
            prompt.next_token = entries.pop()
        return tuple(entries)
