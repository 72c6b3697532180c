"""LlamaCppBackend: finds out about GGUF models and loads them into LlamaCppWorkers."""

from pathlib import Path

import msgspec

from ...errors import InvalidArgument, ModelFormatError, NotSupported
from ..gguf.model_file import GGUFModel, read_model
from ..machine.hardware import MemoryLimit, memory_limit, physical_cores
from ..worker import (
    MemoryNeeds,
    ModelInfo,
    Progress,
    Tokenizer,
    Worker,
    WorkerConfig,
    require_plain_cache,
    require_unquantised,
)
from . import memory, tokenizer
from .fixed_shapes import require_fixed_shapes
from .library import load_library
from .vocabulary import Vocabulary

_NO_TEXTS = frozenset(("wavtokenizer-dec",))
"""Architectures of llama.cpp whose tokens are sounds."""


class _Opened(msgspec.Struct, frozen=True):
    """What is known of a model's files before their weights are read."""

    model: GGUFModel
    vocabulary: Vocabulary


class LlamaCppBackend:
    """Reads GGUF files; implements the Backend protocol."""

    name = "llamacpp"

    def __init__(self) -> None:
        self._opened: _Opened | None = None
        """The model asked about last; vocabularies take up to half a second to load."""

    def inspect(self, name: str, path: Path) -> ModelInfo:
        """See `Backend`; `path` is a .gguf file (any part of a split model) or a folder that holds one model.

        Headers are checked by this package before llama.cpp, which aborts on some bad files, sees the model.

        Raises:
            NotSupported: llama.cpp is not installed, or the model neither writes a text token by token nor
                gives embeddings.
        """
        load_library()
        model = read_model(path)
        vocabulary = Vocabulary(model.path)
        if model.is_reranker:
            raise NotSupported(f"{model.path} is a reranker, which gives neither texts nor embeddings")
        if vocabulary.is_encoder or vocabulary.is_diffusion or model.architecture in _NO_TEXTS:
            raise NotSupported(
                f"{model.path} is of the architecture {model.architecture}, which does not write a text "
                "token by token"
            )
        if vocabulary.size == 0:
            raise ModelFormatError(f"{model.path} does not say how many tokens its vocabulary has")
        max_length = model.shape.context_length
        self._opened = _Opened(model, vocabulary)
        return ModelInfo(
            name=name,
            path=model.path,
            backend=self.name,
            architecture=model.architecture,
            num_parameters=model.num_parameters,
            vocab_size=vocabulary.size,
            max_length=max_length,
            eos_token_ids=vocabulary.eos_token_ids,
            generation_defaults=dict(model.generation_defaults),
        )

    def resolve(self, info: ModelInfo, *, device: str, dtype: str, threads: int) -> tuple[str, str, int]:
        """See `Backend`: CUDA where llama.cpp was built for a GPU; the type that the file is in."""
        devices = ("cpu", "cuda") if load_library().llama_supports_gpu_offload() else ("cpu",)
        if device == "auto":
            device = devices[-1]
        if device not in devices:
            raise InvalidArgument("device", device, f"auto, {', '.join(devices)}")
        own = self._open(info).model.tensor_type
        if dtype not in ("auto", own):
            raise InvalidArgument("dtype", dtype, f"auto, {own}, because {info.path.name} is in {own}")
        if threads < 0:
            raise InvalidArgument("threads", threads, "0 (as many as are fastest) or more")
        return device, own, threads or physical_cores()

    def memory_needs(self, info: ModelInfo, config: WorkerConfig) -> MemoryNeeds:
        """See `Backend`."""
        require_unquantised(config, "a GGUF file's weights are used in the types that they are stored in")
        require_plain_cache(config, "llama.cpp keeps the cache")
        require_fixed_shapes(config, self._open(info).model)
        return memory.memory_needs(self._open(info).model, info.vocab_size, config)

    def memory_limit(self, device: str) -> MemoryLimit:
        """See `Backend`."""
        return memory_limit() if device == "cpu" else memory.gpu_memory()

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> Worker:
        """See `Backend`. The headers are checked again, because the files may be others by now."""
        from .worker import load_worker

        return load_worker(read_model(info.path), info, config, progress)

    def load_tokenizer(self, info: ModelInfo) -> Tokenizer:
        """See `Backend`."""
        opened = self._open(info)
        return tokenizer.load_tokenizer(opened.model, opened.vocabulary)

    def _open(self, info: ModelInfo) -> _Opened:
        opened = self._opened
        if opened is None or opened.model.path != info.path:
            model = read_model(info.path)
            opened = self._opened = _Opened(model, Vocabulary(model.path))
        return opened
