"""OutputBuilder: what a model generates, as the items of a response and the events that tell of them."""

from collections.abc import Iterator
from itertools import count

from ....backends.worker import Tokenizer
from ....engine import Output
from ...handlers import AnswerParser
from ..ids import new_id
from ..logprobs import chat_logprobs
from ..schemas.chat import TokenLogprob
from ..schemas.response_items import (
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    Status,
)
from .events import (
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
    TextLogprob,
)


class _Message:
    """The answer, growing."""

    def __init__(self, index: int) -> None:
        self.id = new_id("msg_")
        self.index = index
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []

    @property
    def part(self) -> OutputText:
        return OutputText(
            type="output_text", text="".join(self.texts), annotations=[], logprobs=self.logprobs
        )

    def item(self, status: Status, *, begun: bool = True) -> OutputMessage:
        content: list[OutputText | Refusal] = [self.part] if begun else []
        return OutputMessage(id=self.id, type="message", status=status, role="assistant", content=content)

    def done(self, number: int) -> Event:
        part = self.part
        return TextDone(number, self.id, self.index, 0, part.text, _rows(part.logprobs))


class _Thought:
    """The reasoning, growing."""

    def __init__(self, index: int) -> None:
        self.id = new_id("rs_")
        self.index = index
        self.texts: list[str] = []

    @property
    def part(self) -> ReasoningText:
        return ReasoningText(type="reasoning_text", text="".join(self.texts))

    def item(self, status: Status, *, begun: bool = True) -> Reasoning:
        content = [self.part] if begun else []
        return Reasoning(id=self.id, type="reasoning", status=status, summary=[], content=content)

    def done(self, number: int) -> Event:
        return ReasoningDone(number, self.id, self.index, 0, self.part.text)


class OutputBuilder:
    """At most one reasoning item, then at most one message.

    Events are numbered as they are made; whoever makes others of the same response numbers them by `number`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        parser: AnswerParser,
        *,
        with_logprobs: bool,
    ) -> None:
        """`parser` is fresh, and counts tokens."""
        self._tokenizer = tokenizer
        self._parser = parser
        self._with_logprobs = with_logprobs
        self._pending: list[TokenLogprob] = []
        """Of tokens whose text is not out yet, or whose side is not known."""
        self._scored = 0
        """Tokens whose log-probabilities were taken."""
        self._numbers = count()
        self._open: _Message | _Thought | None = None
        self._ended: list[OutputItem] = []

    @property
    def reasoning_tokens(self) -> int:
        """Tokens so far that are no part of the answer."""
        return self._parser.reasoning_tokens

    @property
    def items(self) -> list[OutputItem]:
        """Those that have ended."""
        return self._ended

    def number(self) -> int:
        """Of the next event."""
        return next(self._numbers)

    def push(self, output: Output) -> Iterator[Event]:
        """What is new of the output."""
        ended = output.finish_reason is not None
        delta = self._parser.push(output.text, output.token_ids, ended=ended)
        self._take_logprobs(output)
        if delta.reasoning:
            yield from self._think(delta.reasoning)
        if delta.content or (isinstance(self._open, _Message) and self._pending):
            yield from self._say(delta.content)

    def end(self, *, completed: bool) -> Iterator[Event]:
        """The output has ended; one that is not complete was cut off in its last item.

        A complete output has a message, and any output has an item, even if it is empty.
        """
        if completed or not (self._open or self._ended) or (self._pending and self._parser.content_begun):
            yield from self._say("")
        yield from self._close("completed" if completed else "incomplete")

    def _take_logprobs(self, output: Output) -> None:
        """The answer's tokens alone have theirs in the response."""
        if not self._with_logprobs:
            return
        rows = chat_logprobs(self._tokenizer, output).content
        self._pending += rows
        self._scored += len(rows)
        # Reasoning is the output's beginning; `_pending` holds the last of what was scored.
        reasoning = self._parser.reasoning_tokens - (self._scored - len(self._pending))
        del self._pending[: max(reasoning, 0)]

    def _think(self, text: str) -> Iterator[Event]:
        if self._open is None:
            self._open = thought = _Thought(len(self._ended))
            yield from self._begin(thought)
        thought_now = self._open
        thought_now.texts.append(text)
        yield ReasoningDelta(self.number(), thought_now.id, thought_now.index, 0, text)

    def _say(self, text: str) -> Iterator[Event]:
        if isinstance(self._open, _Thought):
            yield from self._close("completed")
        if not isinstance(self._open, _Message):
            self._open = _Message(len(self._ended))
            yield from self._begin(self._open)
        message = self._open
        rows, self._pending = self._pending, []
        if text or rows:
            message.texts.append(text)
            message.logprobs += rows
            yield TextDelta(self.number(), message.id, message.index, 0, text, _rows(rows))

    def _begin(self, item: _Message | _Thought) -> Iterator[Event]:
        empty = item.item("in_progress", begun=False).model_dump()
        yield ItemAdded(self.number(), item.index, empty)
        yield PartAdded(self.number(), item.id, item.index, 0, item.part.model_dump())

    def _close(self, status: Status) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        ended = item.item(status)
        self._ended.append(ended)
        yield item.done(self.number())
        yield PartDone(self.number(), item.id, item.index, 0, item.part.model_dump())
        yield ItemDone(self.number(), item.index, ended.model_dump())


def _rows(logprobs: list[TokenLogprob]) -> list[TextLogprob]:
    return [
        TextLogprob(row.token, row.logprob, [TextLogprob(top.token, top.logprob) for top in row.top_logprobs])
        for row in logprobs
    ]
