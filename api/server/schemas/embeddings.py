"""/v1/embeddings on the wire."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .common import Count, RequestFields, Text, TokenIds, Wire


class EmbeddingRequest(RequestFields):
    """Embed a text, or each of several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["os.path.join", "shutil.copy"]}]})

    input: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=2048, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=2048, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    """Keep so many numbers of each embedding, its first ones."""
    normalize: bool | None = None
    """Whether vectors are scaled to length 1; left out, as the model was made for."""
    truncate_prompt_tokens: Count | None = None
    """Keep so many tokens of each text, its first ones."""


class EmbeddingObject(Wire):
    """One text's embedding."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or their bytes as little-endian float32 in base64."""


class EmbeddingUsage(Wire):
    """Tokens over all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Wire):
    """The embeddings, in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
