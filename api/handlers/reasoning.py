"""ReasoningSplitter: parts a model's reasoning, which stands between two tags, from its answer."""

from enum import Enum, auto

import msgspec


class ReasoningTags(msgspec.Struct, frozen=True):
    """What stands before and behind a model's reasoning.

    The line breaks beside a tag, inside and behind the block, belong to it: templates write them there, and
    take them away again when they read an old answer.
    """

    begin: str
    end: str


class AnswerDelta(msgspec.Struct, frozen=True):
    """Text that has become certain, on either side."""

    reasoning: str = ""
    content: str = ""


_NOTHING = AnswerDelta()


class _State(Enum):
    BEGINNING = auto()
    """Nothing but blanks and a part of the first tag so far."""
    OPENED = auto()
    """Behind the first tag and its line breaks."""
    REASONING = auto()
    CLOSED = auto()
    """Behind the second tag and its line breaks."""
    CONTENT = auto()


class ReasoningSplitter:
    """Splits the text of one choice. A block counts only at the very beginning, and there is at most one.

    However the text is cut into pieces, their parts joined are the same. What is held back is only what may
    belong to a tag, and `flush` gives it out; apart from the tags, each character comes out once.
    """

    def __init__(self, tags: ReasoningTags, *, opened: bool = False) -> None:
        """With `opened` the prompt has ended with the first tag, and the text begins inside of the block."""
        self._tags = tags
        self._state = _State.OPENED if opened else _State.BEGINNING
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether the last text pushed has ended inside of the block."""
        return self._state in (_State.OPENED, _State.REASONING)

    def push(self, text: str) -> AnswerDelta:
        """What is certain after `text`, the next piece of the output."""
        if self._state is _State.CONTENT:
            return AnswerDelta("", text)
        text, self._held = self._held + text, ""
        if self._state is _State.BEGINNING:
            return self._begin(text)
        return self._reason(text) if self.in_reasoning else self._close(text)

    def flush(self) -> AnswerDelta:
        """What is still held back, at the end of the output; a second call gives nothing."""
        held, self._held = self._held, ""
        return AnswerDelta(reasoning=held) if self.in_reasoning else AnswerDelta(content=held)

    def split(self, text: str) -> AnswerDelta:
        """A whole output at once."""
        first, rest = self.push(text), self.flush()
        return AnswerDelta(first.reasoning + rest.reasoning, first.content + rest.content)

    def _begin(self, text: str) -> AnswerDelta:
        start, begin = text.lstrip(), self._tags.begin
        if start.startswith(begin):
            self._state = _State.OPENED
            return self._reason(start[len(begin) :])
        if begin.startswith(start):
            self._held = text
            return _NOTHING
        self._state = _State.CONTENT
        return AnswerDelta(content=text)

    def _reason(self, text: str) -> AnswerDelta:
        if self._state is _State.OPENED:
            text = text.lstrip("\n")
            if not text:
                return _NOTHING
            self._state = _State.REASONING
        reasoning, end, rest = text.partition(self._tags.end)
        if not end:
            sure = len(text) - _possible_beginning(text, self._tags.end)
            sure = len(text[:sure].rstrip("\n"))
            self._held = text[sure:]
            return AnswerDelta(reasoning=text[:sure])
        self._state = _State.CLOSED
        return AnswerDelta(reasoning.rstrip("\n"), self._close(rest).content)

    def _close(self, text: str) -> AnswerDelta:
        content = text.lstrip("\n")
        if content:
            self._state = _State.CONTENT
        return AnswerDelta(content=content)


def _possible_beginning(text: str, tag: str) -> int:
    """Length of the longest end of `text` with which `tag` begins."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if tag.startswith(text[-size:])), 0)
