"""Models on the wire: the list of them, loading and unloading."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .common import Count, Text, Wire


class ModelObject(Wire):
    """A model, or an adapter of one, that requests may name."""

    id: str
    object: Literal["model"]
    created: int
    """Seconds since the epoch."""
    owned_by: str
    root: str
    """Where the model's files are from, as it was named when it was loaded."""
    parent: str | None
    """The model that an adapter belongs to."""
    max_model_len: int
    """Longest request in tokens, prompt and output together."""


class ModelList(Wire):
    """All models, the default one first."""

    object: Literal["list"]
    data: list[ModelObject]


class LoadRequest(Wire):
    """Load a model; what is left out is found out, or as the command line says."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "pyhelp", "name": "helper", "max_length": 512}]}
    )

    model: Text
    """Folder, hub id or bundled name."""
    name: Text | None = None
    """What requests call it; `model` itself when left out."""
    backend: Text | None = None
    revision: Text | None = None
    token: Text | None = None
    """For the hub."""
    device: Text | None = None
    dtype: Text | None = None
    quantization: Text | None = None
    kv_cache_dtype: Text | None = None
    batch_invariant: bool | None = None
    """The same bits in every batch, or the model is refused."""
    threads: Annotated[int, Field(ge=0, le=4096)] | None = None
    max_length: Count | None = None
    block_size: Count | None = None
    num_blocks: Count | None = None
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    enable_prefix_cache: bool | None = None
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    adapters: dict[str, str] | None = None
    """Adapters (LoRA) to load with it: name to file or folder."""


class UnloadRequest(Wire):
    """Unload a model: it takes no more requests, and those it has may end."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "helper", "timeout": 30}]})

    model: Text
    timeout: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Seconds after which requests that have not ended are cancelled; left out, they are waited for."""


class Unloaded(Wire):
    """A model that is gone."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]
