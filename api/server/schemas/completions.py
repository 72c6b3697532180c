"""/v1/completions on the wire."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ....scheduler.sampling_fields import MAX_TOP_LOGPROBS
from .common import FinishName, PromptLogprobs, SamplingFields, Text, TokenIds, Usage, Wire, in_parts


class CompletionRequest(SamplingFields):
    """Continue a prompt, or each of several."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "shutil.copy", "max_tokens": 16, "temperature": 0}]}
    )

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, fail_fast=True), in_parts("texts")]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), in_parts("prompts")]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = 16
    """Longest output in tokens; 0 is allowed with `echo`."""
    echo: bool | None = None
    """Begin the text with the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Alternatives to report for each token."""
    best_of: Literal[1] | None = None
    """Other values are not served."""
    suffix: None = None
    """Texts to be continued in the middle are not served."""
    add_special_tokens: bool | None = None
    """Whether a text's ids begin with the model's own first token; true unless said otherwise."""


class CompletionLogprobs(Wire):
    """Of the tokens of one choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Wire):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishName | None
    stop_reason: int | str | None
    """The stop token or stop string that ended it."""
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(Wire):
    """The answer; streamed, its chunks have the same fields."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
