"""Items of the Responses API on the wire: as clients send them, and in the one form they are kept in."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from .chat import TokenLogprob
from .common import Wire, in_parts

Status = Literal["in_progress", "completed", "incomplete"]


def _writable(text: str) -> str:
    """Refuse what no answer could carry back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("half_character", "halves of surrogate pairs are no characters") from None
    return text


Line = Annotated[str, AfterValidator(_writable)]
"""A text that is given back as it came."""


def must_be_null(reason: str) -> BeforeValidator:
    """Let nothing but null into a field that asks for what is not served; `reason` says why."""

    def check(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("not_served", "only null is allowed: {reason}", {"reason": reason})

    return BeforeValidator(check)


def _served(kinds: dict[str, str], default: str, others: str) -> BeforeValidator:
    """Refuse an object whose `type` is none of `kinds`, by that type."""

    def check(value: object) -> object:
        if not isinstance(value, dict):
            raise PydanticCustomError("not_an_object", "only objects with a type are allowed")
        kind = value.get("type", default)
        if not isinstance(kind, str) or kind not in kinds:
            context = {"kind": repr(kind)[:60], "allowed": ", ".join(kinds), "others": others}
            raise PydanticCustomError(
                "not_served", "the type {kind} is not served; allowed: {allowed}; {others}", context
            )
        return value

    return BeforeValidator(check)


def _branch(kinds: dict[str, str], default: str) -> Callable[[Any], str | None]:
    """Finds the branch of a union by an object's `type`; branches' names are no field's name."""

    def find(value: Any) -> str | None:
        kind = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", None)
        return kinds.get(kind) if isinstance(kind, str) else None

    return find


class InputText(Wire):
    """A piece of what the model is told."""

    type: Literal["input_text"]
    text: Line


class OutputText(Wire):
    """A piece of what the model has said."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    """Always empty: nothing is cited."""
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class Refusal(Wire):
    """What another server's model would not say; this one has no such parts of its own."""

    type: Literal["refusal"]
    refusal: Line


class ReasoningText(Wire):
    """A piece of a model's reasoning."""

    type: Literal["reasoning_text"]
    text: Line


class SummaryText(Wire):
    """A piece of a summary of a model's reasoning, from another server."""

    type: Literal["summary_text"]
    text: Line


# As clients send them


class SentOutputText(Wire):
    """An output text given back; what was said about it is not read."""

    type: Literal["output_text"]
    text: Line
    annotations: list[Any] | None = None
    """No effect."""
    logprobs: list[Any] | None = None
    """No effect."""


_PARTS = {"input_text": "an input text", "output_text": "an output text", "refusal": "a refusal"}
Part = Annotated[
    Annotated[InputText, Tag("an input text")]
    | Annotated[SentOutputText, Tag("an output text")]
    | Annotated[Refusal, Tag("a refusal")],
    Discriminator(_branch(_PARTS, "")),
    _served(_PARTS, "", "no images, files or sounds"),
]


def _text_or_list(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a text"


class SentMessage(Wire):
    """A message, or an output message of an earlier response given back."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[Line, Tag("a text")]
        | Annotated[list[Part], Field(min_length=1, fail_fast=True), in_parts("items"), Tag("a list")],
        Discriminator(_text_or_list),
    ]
    id: Line | None = None
    status: Status | None = None
    """No effect."""
    phase: Literal["commentary", "final_answer"] | None = None
    """No effect."""


class SentReasoning(Wire):
    """Reasoning of an earlier response given back; it belongs to the assistant's message that follows."""

    type: Literal["reasoning"]
    id: Line | None = None
    summary: list[SummaryText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: Annotated[None, must_be_null("reasoning is given, and taken back, in the clear")] = (
        None
    )
    status: Status | None = None
    """No effect."""


class ItemReference(Wire):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"]
    id: Line


_SENT = {"message": "a message", "reasoning": "a reasoning", "item_reference": "a reference"}
SentItem = Annotated[
    Annotated[SentMessage, Tag("a message")]
    | Annotated[SentReasoning, Tag("a reasoning")]
    | Annotated[ItemReference, Tag("a reference")],
    Discriminator(_branch(_SENT, "message")),
    _served(_SENT, "message", "no tools, images or files"),
]
Input = Annotated[
    Annotated[Line, Tag("a text")]
    | Annotated[list[SentItem], Field(fail_fast=True), in_parts("items"), Tag("a list")],
    Discriminator(_text_or_list),
]

# As they are kept, listed and given out


class InputMessage(Wire):
    """What the model was told."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "system", "developer"]
    content: list[InputText]


class OutputMessage(Wire):
    """What the model has said."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[Annotated[OutputText | Refusal, Field(discriminator="type")]]


class Reasoning(Wire):
    """What the model has thought."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[SummaryText]
    """Empty: summaries are not made."""
    content: list[ReasoningText]


OutputItem = Annotated[OutputMessage | Reasoning, Field(discriminator="type")]


def _kept_branch(value: Any) -> str:
    fields = value if isinstance(value, dict) else vars(value)
    if fields.get("type") == "reasoning":
        return "reasoning"
    return "output" if fields.get("role") == "assistant" else "input"


Item = Annotated[
    Annotated[InputMessage, Tag("input")]
    | Annotated[OutputMessage, Tag("output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_kept_branch),
]


class ItemList(Wire):
    """Some of the items that a response was made from."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
