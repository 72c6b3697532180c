"""/tokenize and /detokenize on the wire."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from .chat import Message
from .common import Text, TokenId, Wire, in_parts


class TokenizeRequest(Wire):
    """Token ids of a text or, with `messages`, of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "What does os.path.join do?", "return_token_strs": True}]}
    )

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True), in_parts("messages")] | None = (
        None
    )
    add_special_tokens: bool | None = None
    """Whether a text's ids begin with the model's own first token; true unless said otherwise."""
    add_generation_prompt: bool | None = None
    """Whether a conversation ends where its answer begins; true unless said otherwise."""
    continue_final_message: bool | None = None
    chat_template: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None
    """Give the text of each token, too."""


class Tokenized(Wire):
    """Token ids, and how many the model could take."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Wire):
    """The text of token ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [264, 78, 309]}]})

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True), in_parts("ids")]
    skip_special_tokens: bool | None = None
    """Whether special tokens have no text; false unless said otherwise."""


class Detokenized(Wire):
    """A text."""

    prompt: str
