"""/v1/responses on the wire."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ....scheduler.sampling_fields import MAX_TOP_LOGPROBS
from .common import Count, SamplingFields, StreamOptions, Text, Wire
from .response_items import Input, Line, OutputItem, must_be_null

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Metadata = Annotated[
    dict[Annotated[Line, Field(max_length=64)], Annotated[Line, Field(max_length=512)]], Field(max_length=16)
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Includable = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]

_ONE = must_be_null("one answer is made per response")
_OTHER_LENGTH = must_be_null("max_output_tokens is the field of this route")
_PROMPT_ROUTES = must_be_null("/v1/completions and /v1/chat/completions have it")
_TRUNCATION = must_be_null("truncation is the field of this route")
_CONVERSATION = must_be_null("conversations are not kept apart from responses; use previous_response_id")
_PROMPT = must_be_null("prompt templates are not kept")


class TextFormat(Wire):
    """Only text is served."""

    type: Literal["text"]


class TextConfig(Wire):
    """What the answer looks like."""

    format: TextFormat = TextFormat(type="text")
    verbosity: Literal["low", "medium", "high"] | None = None
    """A variable for the template."""


class ReasoningConfig(Wire):
    """How the model is to think."""

    effort: Effort | None = None
    """A variable for the template, `reasoning_effort`."""
    summary: Literal["auto"] | None = None
    """Summaries are not made; "auto" leaves that to the server, any other value is refused."""


class ResponseStreamOptions(StreamOptions):
    """Of a streamed response; its usage always comes with the last event."""

    include_usage: None = None
    continuous_usage_stats: None = None


class ResponseRequest(SamplingFields):
    """Answer a conversation, of which earlier turns may be kept by the server."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": "What does os.path.join do?", "max_output_tokens": 64}]}
    )

    input: Input | None = None
    """A text, or items: messages, reasoning, and references to items of stored responses. May be left out
    behind `previous_response_id`."""
    instructions: Line | None = None
    """A system message before everything else; that of the previous response does not hold any more."""
    previous_response_id: Line | None = None
    """A stored response whose whole conversation, answer included, comes before this input."""
    max_output_tokens: Count | None = None
    """Longest answer in tokens, reasoning included."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Needs "message.output_text.logprobs" in `include`."""
    include: list[Includable] | None = None
    """"reasoning.encrypted_content" has no effect: reasoning is given in the clear, and is taken back so."""
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """"auto" drops the oldest turns of a conversation that is too long for the model; what the system said,
    and the last message, are kept."""
    store: bool | None = None
    """Keep the response (unless said otherwise), for `previous_response_id` and to look at it again."""
    background: bool | None = None
    """Answer at once, with a response that is to be asked for until it has ended."""
    metadata: Metadata | None = None
    """Kept with the response."""
    stream_options: ResponseStreamOptions | None = None

    chat_template: Text | None = None
    """Jinja source, or the name of one of the model's templates, to use instead of the default one."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the template, for example {"enable_thinking": false}."""

    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Tools are not served; only an empty list is allowed."""
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    """No effect."""
    max_tool_calls: Count | None = None
    """No effect."""
    user: Line | None = None
    """No effect; given back."""
    safety_identifier: Line | None = None
    """No effect; given back."""
    prompt_cache_key: Line | None = None
    """No effect; given back. Prefixes are found by their tokens; `cache_salt` keeps them apart."""
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    """No effect; given back."""

    n: Annotated[None, _ONE] = None
    max_tokens: Annotated[None, _OTHER_LENGTH] = None
    prompt_logprobs: Annotated[None, _PROMPT_ROUTES] = None
    return_token_ids: Annotated[None, _PROMPT_ROUTES] = None
    truncate_prompt_tokens: Annotated[None, _TRUNCATION] = None
    conversation: Annotated[None, _CONVERSATION] = None
    prompt: Annotated[None, _PROMPT] = None


class ResponseFailure(Wire):
    """Why a response has failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(Wire):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(Wire):
    """Part of `ResponseUsage`."""

    cached_tokens: int
    """Prompt tokens that were found in the prefix cache."""
    cache_write_tokens: Literal[0] = 0
    """Always 0: what a prompt adds to the prefix cache is not counted."""


class OutputTokensDetails(Wire):
    """Part of `ResponseUsage`."""

    reasoning_tokens: int


class ResponseUsage(Wire):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(Wire):
    """A response, and what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    background: bool
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: Literal["in_memory", "24h"] | None
    reasoning: ReasoningConfig
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: Literal["none", "auto"]
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None


class DeletedResponse(Wire):
    """A response is no longer kept."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
