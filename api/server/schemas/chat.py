"""/v1/chat/completions on the wire."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ....scheduler.sampling_fields import MAX_TOP_LOGPROBS
from .common import Count, FinishName, PromptLogprobs, SamplingFields, Text, Usage, Wire, in_parts


class TextPart(Wire):
    """A piece of a message's content."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(Wire):
    """One message; the model's chat template decides what else of it is read."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True), in_parts("parts")] | None = None
    name: str | None = None


class ResponseFormat(Wire):
    """Only text is served."""

    type: Literal["text"]


class ChatRequest(SamplingFields):
    """Answer a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "What does os.path.join do?"}],
                    "max_tokens": 64,
                    "temperature": 0,
                }
            ]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True), in_parts("messages")]
    max_completion_tokens: Count | None = None
    """Longest answer in tokens, reasoning included; goes before `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    chat_template: Text | None = None
    """Jinja source, or the name of one of the model's templates, to use instead of the default one."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template, for example {"enable_thinking": false}."""
    reasoning_effort: str | None = None
    """A variable for the template."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Go on with the last message instead of answering it."""
    echo: bool | None = None
    """With `continue_final_message`: begin the answer with that message."""
    include_reasoning: bool | None = None
    """False leaves the reasoning out of the answer."""

    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Tools are not served; only an empty list is allowed."""
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: bool | None = None
    """No effect: chat completions are not kept."""
    parallel_tool_calls: bool | None = None
    """No effect."""
    prediction: dict[str, Any] | None = None
    """No effect on the answer."""
    prompt_cache_key: str | None = None
    """No effect."""
    prompt_cache_retention: str | None = None
    """No effect."""
    verbosity: str | None = None
    """A variable for the template."""


class TopLogprob(Wire):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Wire):
    """A token of the answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    """Of the tokens of one choice."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Wire):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    refusal: None = None


class ChatChoice(Wire):
    """One answer, and why it ended."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishName
    stop_reason: int | str | None
    """The stop token or stop string that ended it."""
    token_ids: list[int] | None = None


class ChatCompletion(Wire):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
