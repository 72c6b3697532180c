"""Conversation: the items a response is made from, and the model's prompt for them."""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....errors import InvalidArgument, LimitExceeded
from ...handlers import ModelHandler
from ..errors import ApiError
from ..ids import new_id
from ..schemas.response_items import (
    InputMessage,
    InputText,
    Item,
    ItemReference,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    Refusal,
    SentItem,
    SentMessage,
    SentReasoning,
)
from ..text_pool import TextPool

_ROOM = 4
"""Where truncation sets in and nobody has said how long the answer may become, this part of the model's
length is left for it: were it less, the next turns would be cut off, and each would truncate anew."""
_IN_MESSAGES = re.compile(r"messages\[(\d+)\]")


def read_input(
    sent: str | Sequence[SentItem] | None, resolve: Callable[[str], Item | None]
) -> tuple[Item, ...]:
    """A request's input in the form that is kept, every item with an id.

    `resolve` finds the item that a reference means.

    Raises:
        ApiError: there is no such item.
    """
    if sent is None:
        return ()
    if isinstance(sent, str):
        return (_told("user", [sent], None),)
    return tuple(_read(item, f"input[{index}]", resolve) for index, item in enumerate(sent))


def _read(item: SentItem, where: str, resolve: Callable[[str], Item | None]) -> Item:
    if isinstance(item, ItemReference):
        found = resolve(item.id)
        if found is None:
            message = f"{where}.id: item with id {item.id!r} not found among the stored responses"
            raise ApiError(404, message, param=f"{where}.id", code="item_not_found")
        return found
    if isinstance(item, SentReasoning):
        return Reasoning(
            id=item.id or new_id("rs_"),
            type="reasoning",
            status="completed",
            summary=item.summary,
            content=item.content or [],
        )
    return _read_message(item)


def _read_message(item: SentMessage) -> Item:
    parts = item.content
    if item.role != "assistant":
        texts = [parts] if isinstance(parts, str) else [_text(part) for part in parts]
        return _told(item.role, texts, item.id)
    said: list[OutputText | Refusal] = (
        [OutputText(type="output_text", text=parts)]
        if isinstance(parts, str)
        else [
            part if isinstance(part, Refusal) else OutputText(type="output_text", text=part.text)
            for part in parts
        ]
    )
    return OutputMessage(
        id=item.id or new_id("msg_"), type="message", status="completed", role="assistant", content=said
    )


def _told(role: Any, texts: Sequence[str], item_id: str | None) -> InputMessage:
    return InputMessage(
        id=item_id or new_id("msg_"),
        type="message",
        status="completed",
        role=role,
        content=[InputText(type="input_text", text=text) for text in texts],
    )


def _text(part: Any) -> str:
    text: str = part.refusal if isinstance(part, Refusal) else part.text
    return text


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message for the model, and what the request calls it."""

    name: str
    message: Mapping[str, Any]

    @property
    def is_system(self) -> bool:
        return self.message["role"] in ("system", "developer")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a response answers."""

    instructions: str | None
    history: tuple[Item, ...]
    """Of earlier responses."""
    items: tuple[Item, ...]
    """The request's own."""

    @property
    def all_items(self) -> tuple[Item, ...]:
        """History and own."""
        return self.history + self.items

    def _turns(self) -> list[_Turn]:
        """Messages in order. Reasoning goes with the assistant's message behind it, or stands alone."""
        turns: list[_Turn] = []
        if self.instructions:
            turns.append(_Turn("instructions", {"role": "system", "content": self.instructions}))
        names = ["previous_response_id"] * len(self.history)
        names += [f"input[{index}]" for index in range(len(self.items))]
        thought, thought_name = "", ""
        for name, item in zip(names, self.all_items, strict=True):
            speaks = isinstance(item, OutputMessage)
            if thought and not speaks:
                turns.append(_said(thought_name, "", thought))
                thought = ""
            if isinstance(item, Reasoning):
                thought, thought_name = _thought(item), name
            elif speaks:
                turns.append(_said(name, _joined(item), thought))
                thought = ""
            else:
                turns.append(_Turn(name, {"role": item.role, "content": _joined(item)}))
        if thought:
            turns.append(_said(thought_name, "", thought))
        return turns

    async def prompt(
        self,
        handler: ModelHandler,
        texts: TextPool,
        max_length: int,
        *,
        max_output_tokens: int | None,
        truncate: bool,
        chat_template: str | None,
        template_variables: Mapping[str, Any],
    ) -> list[int]:
        """Token ids for a model whose requests hold up to `max_length` tokens; long ones are made in `texts`.

        With `truncate`, the oldest turns of what would not fit are left out.

        Raises:
            ApiError: it does not fit.
            InvalidArgument: a message, the template or one of its variables is wrong.
        """
        turns = self._turns()

        def render(left_out: int) -> list[int]:
            kept = [turn for index, turn in enumerate(turns) if turn.is_system or index >= left_out]
            try:
                return handler.prompt(
                    [turn.message for turn in kept],
                    chat_template=chat_template,
                    template_variables=template_variables,
                    most_tokens=None if truncate else max_length - 1,
                )
            except InvalidArgument as error:
                raise _as_sent(error, kept) from error
            except LimitExceeded as error:
                raise _too_long(str(error)) from error

        def fitting() -> list[int]:
            prompt = render(0)
            if len(prompt) + (max_output_tokens or 1) <= max_length or not truncate:
                return prompt
            room = min(max_output_tokens or max_length // _ROOM, max_length // 2)
            return _shortest_cut(render, _cuts(turns), max_length - room)

        characters = sum(1 + len(turn.message["content"]) for turn in turns)
        prompt = await texts.run_long(characters, fitting)
        if len(prompt) >= max_length:
            raise _too_long(
                f"input, with everything before it, has {len(prompt)} tokens; the model takes up to "
                f"{max_length - 1}"
            )
        return prompt


def _too_long(message: str) -> ApiError:
    return ApiError(400, message, param="input", code="context_length_exceeded")


def _cuts(turns: Sequence[_Turn]) -> list[int]:
    """How many turns may be left out, from none up to all but the last; what is left begins with a user."""
    last = len(turns) - 1
    users = [index for index, turn in enumerate(turns[:-1]) if index and turn.message["role"] == "user"]
    return [0, *users, last] if last else [0]


def _shortest_cut(render: Callable[[int], list[int]], cuts: Sequence[int], most: int) -> list[int]:
    """The prompt that leaves out the fewest turns and has at most `most` tokens; else the shortest of all."""
    prompts: dict[int, list[int]] = {}

    def fits(cut: int) -> bool:
        prompts[cut] = render(cut)
        return len(prompts[cut]) <= most

    place = bisect_left(cuts, True, key=fits)
    return prompts[cuts[min(place, len(cuts) - 1)]]


def _as_sent(error: InvalidArgument, turns: Sequence[_Turn]) -> InvalidArgument:
    """The same error, about the field that the request has."""
    parameter = error.parameter
    if parameter == "template_variables":
        parameter = "chat_template_kwargs"
    elif parameter == "messages":
        parameter = "input"
    elif found := _IN_MESSAGES.match(parameter):
        parameter = turns[int(found[1])].name
    return InvalidArgument(parameter, error.value, error.allowed)


def _said(name: str, content: str, thought: str) -> _Turn:
    message = {"role": "assistant", "content": content}
    return _Turn(name, {**message, "reasoning_content": thought} if thought else message)


def _joined(item: InputMessage | OutputMessage) -> str:
    return "\n".join(_text(part) for part in item.content)


def _thought(item: Reasoning) -> str:
    parts: Sequence[ReasoningText | Any] = item.content or item.summary
    return "\n".join(part.text for part in parts)
