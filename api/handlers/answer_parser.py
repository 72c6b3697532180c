"""AnswerParser: one output's text, parted as it comes into what it thinks and what it says."""

from collections.abc import Sequence

from ...backends.worker import TextStream
from .reasoning import AnswerDelta, ReasoningSplitter


class ReasoningTokens:
    """Counts the tokens at the beginning of an output that are its reasoning.

    The tags, and the line breaks beside them, belong to it. The texts that readers get hold several tokens,
    so the ids are decoded once more, one by one, until the content begins.
    """

    def __init__(self, splitter: ReasoningSplitter | None, stream: TextStream) -> None:
        """Both fresh, for this alone; without a splitter there is no reasoning."""
        self._splitter = splitter
        self._stream = stream
        self._undecided = 0
        self.count = 0
        self.content_begun = splitter is None
        """Whether all further tokens are content."""

    def push(self, token_ids: Sequence[int]) -> None:
        """The next tokens of the output."""
        for token in token_ids:
            if self.content_begun or self._splitter is None:
                return
            was_reasoning = self._splitter.in_reasoning
            delta = self._splitter.push(self._stream.push(token))
            if delta.content and not was_reasoning:
                self.content_begun = True
            elif was_reasoning or self._splitter.in_reasoning or self.count:
                self.count += self._undecided + 1
                self._undecided = 0
                self.content_begun = delta.content != ""
            else:
                self._undecided += 1


class AnswerParser:
    """Reads one output from its beginning to its end; made by `ModelHandler.answer_parser`."""

    def __init__(self, splitter: ReasoningSplitter | None, tokens: ReasoningTokens | None = None) -> None:
        """Both fresh. Without a splitter all text is content; without `tokens` none are counted."""
        self._splitter = splitter
        self._tokens = tokens

    def push(self, text: str, token_ids: Sequence[int] = (), *, ended: bool) -> AnswerDelta:
        """What is certain after the next text of the output; with `ended`, what was held back comes, too."""
        if self._tokens is not None:
            self._tokens.push(token_ids)
        if self._splitter is None:
            return AnswerDelta(content=text)
        delta = self._splitter.push(text)
        if not ended:
            return delta
        rest = self._splitter.flush()
        return AnswerDelta(delta.reasoning + rest.reasoning, delta.content + rest.content)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens so far that are no part of the answer, as far as they are counted."""
        return 0 if self._tokens is None else self._tokens.count

    @property
    def content_begun(self) -> bool:
        """Whether all further tokens are content, as far as they are counted."""
        return self._tokens is None or self._tokens.content_begun
