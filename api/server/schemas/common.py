"""Fields that several routes share."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails

from ....scheduler.sampling_fields import MAX_N, MAX_TOP_LOGPROBS

_PART = 1024
"""Items of a list that are checked in one go."""


def _in_parts(value: Any, check: Callable[[Any], list[Any]]) -> list[Any]:
    """Check a long list a part at a time: while one is checked, no other thread runs."""
    if not isinstance(value, list) or len(value) <= _PART:
        return check(value)
    checked: list[Any] = []
    for start in range(0, len(value), _PART):
        try:
            checked += check(value[start : start + _PART])
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                error.title, [_moved(fault, start) for fault in error.errors(include_url=False)]
            ) from error
    return checked


def _moved(fault: Any, start: int) -> InitErrorDetails:
    index, *place = fault["loc"]
    kind, context = fault["type"], fault.get("ctx", {})
    return InitErrorDetails(type=kind, loc=(index + start, *place), input=fault["input"], ctx=context)


def in_parts(items: str) -> WrapValidator:
    """For lists that a stranger may make long; their first fault ends the check (fail_fast).

    `items` tells branches of a union apart: pydantic names them by the function.
    """

    def check_in_parts(value: Any, check: Callable[[Any], list[Any]]) -> list[Any]:
        return _in_parts(value, check)

    check_in_parts.__name__ = f"list of {items}"
    return WrapValidator(check_in_parts)


Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), in_parts("ids")]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]

FinishName = Literal["stop", "length", "timeout", "cancelled", "interrupted"]
"""Why a choice ended: beside OpenAI's first two, its deadline (or that of the queue) passed, the model was
stopped, or it outgrew the whole cache."""


class Wire(BaseModel):
    """What is read from, or described to, a client; nothing is converted from another JSON type."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        frozen=True,
        # With a bound, be it none, texts are checked to be Unicode: halves of surrogate pairs are refused.
        str_min_length=0,
    )


class StreamOptions(Wire):
    """Of a streamed answer."""

    include_usage: bool | None = None
    """End with a chunk that has no choices and the usage of the whole request."""
    continuous_usage_stats: bool | None = None
    """Put the usage so far into every chunk."""
    include_obfuscation: bool | None = None
    """No effect: chunks are not padded."""


class RequestFields(Wire):
    """Scheduling of a request, and fields of OpenAI's API that change nothing here."""

    model: str | None = None
    """Name of a model or of a loaded adapter; the first model where it is left out."""
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    """Lower numbers are served first. A request under an API key may name 0 or more."""
    cache_salt: str | None = None
    """Cached prefixes are shared only among requests of the same key and the same salt."""
    timeout: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Seconds after which the request ends with 504, or with the finish reason "timeout"; the header
    X-Request-Timeout says the same."""
    queue_timeout: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Seconds that the request may wait for its first step."""

    user: str | None = None
    """No effect."""
    metadata: dict[str, str] | None = None
    """No effect."""
    safety_identifier: str | None = None
    """No effect."""
    service_tier: str | None = None
    """No effect."""


class SamplingFields(RequestFields):
    """Sampling of the routes that generate: OpenAI's fields, vLLM's names for more, and the engine's own."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63)] | None = None
    """Its lowest 63 bits count."""
    stop: Text | list[Text] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(json_schema_extra={"additionalProperties": False}),
        ]
        | None
    ) = None
    """Token id, written as a string, to what is added to its logit."""
    max_tokens: Count | None = None
    """Longest output in tokens."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    """0 or -1 keeps all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] | None = None
    suppress_repetition_in_generation: bool | None = None
    """Apply the repetition penalty to generated tokens only."""
    no_repeat_ngram_size: CountOrZero | None = None
    min_tokens: CountOrZero | None = None
    """Shortest output in tokens."""
    max_length: Count | None = None
    """Longest prompt and output together."""
    min_length: CountOrZero | None = None
    """Shortest prompt and output together."""
    ignore_eos: bool | None = None
    eos_token_ids: list[TokenId] | None = None
    """In place of the model's own."""
    stop_token_ids: list[TokenId] | None = None
    stop_words_ids: list[TokenIds] | None = None
    """Runs of tokens that end the output."""
    include_stop_str_in_output: bool | None = None
    bad_words: list[Text] | None = None
    """Texts that are never produced."""
    bad_words_ids: list[TokenIds] | None = None
    """Runs of tokens that are never produced."""
    allowed_token_ids: TokenIds | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Count | None = None
    """Keep so many tokens of the prompt, its last ones."""
    return_token_ids: bool | None = None
    """Give the token ids of prompts and outputs, too."""


class PromptTokensDetails(Wire):
    """Part of `Usage`."""

    cached_tokens: int
    """Prompt tokens that were found in the prefix cache."""


class Usage(Wire):
    """Tokens of a request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ErrorObject(Wire):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Wire):
    """What is answered instead of the thing asked for."""

    error: ErrorObject


class PromptLogprob(Wire):
    """A token that stands, or might stand, at one position of a prompt."""

    logprob: float
    rank: int | None
    """1 is the most likely; None for the prompt's own token where it is none of the alternatives."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry per prompt token, keyed by token id; None for the first, which nothing predicts."""
