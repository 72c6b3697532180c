"""The contract between the engine and a backend: Worker, WorkerSpec, Backend, Tokenizer and ModelInfo."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from ..errors import InvalidArgument, NotSupported
from ..scheduler.batch import Batch, Pooling, StepResult
from .machine.hardware import MemoryLimit

QUANTIZATIONS = ("none", "int8", "int4")
"""How weights may be quantised while they are loaded: not at all, or to 8 or 4 bits."""
KV_CACHE_DTYPES = ("auto", "int8", "uint4")
"""How a cache may hold keys and values: in the type that is computed in, or in 8 or 4 bits with a scale per
token and head."""
Progress = Callable[[str, float], None]
"""Told what is being done ("weights", "warm-up") and how much of it is done, from 0 to 1."""


class EmbeddingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The embeddings that a model gives."""

    size: int
    """Numbers in each."""
    pooling: Pooling
    """The model's own, where a request names none."""
    normalizes: bool = True
    """Embeddings are scaled to length 1 where a request does not say: so its authors do, or do not say."""


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker can do, as data; everything above backends/ decides by this alone."""

    vocab_size: int
    max_length: int
    """Longest sequence in tokens, prompt and output together."""
    block_size: int
    num_blocks: int
    max_num_seqs: int
    """Sequence ids run from 0 to max_num_seqs - 1."""
    max_num_batched_tokens: int
    """Most tokens one Batch may hold."""
    warmup_tokens: int = 1
    """Tokens of the chunk that leaves nothing to be set up for any other."""
    learning_steps: int = 1
    """Steps of one size that leave nothing to be learnt about it."""
    shares_prefixes: bool = True
    """Sequences may share blocks; False switches the prefix cache off."""
    shares_within_step: bool = True
    """A sequence may read blocks that another one fills in the same step."""
    generates: bool = True
    """Slices may want tokens."""
    embedding: EmbeddingSpec | None = None
    """Slices may want embeddings; None where they may not."""
    chunks_prompts: bool = True
    """A prompt may be computed in several steps; not where its tokens see those that come after them."""
    takes_adapters: bool = False
    mixes_adapters: bool = True
    """The sequences of one step may run under different adapters."""
    device: str = "cpu"
    dtype: str = "float32"


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A low-rank adapter (LoRA) in a file or folder."""

    name: str
    path: Path
    scale: float = 1.0
    """Factor of what it adds, beyond the file's own alpha / rank."""


class Worker(Protocol):
    """One loaded model: owns weights and physical KV; knows no queue, no text, no policy."""

    @property
    def spec(self) -> WorkerSpec:
        """Constant from the worker's creation to its end."""

    def execute(self, batch: Batch) -> StepResult:
        """Compute one step. Blocks; called from one thread at a time.

        A `retired` id that the worker does not know is no error: it may have been restarted since.

        Raises:
            WorkerError: the step failed as a whole and none of its results can be used.
        """

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """Make an adapter, whose name is free, ready for sequences. Called between steps.

        Raises:
            ModelFormatError: the file is damaged, or made for another model.
            LimitExceeded: its rank is above `max_rank`.
            NotSupported: `takes_adapters` is False, or it is of a kind that this worker does not run.
        """

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter that no live sequence runs under. Called between steps."""

    def close(self) -> None:
        """Give all memory back. The worker is not used afterwards; a second call does nothing."""


class TextStream(Protocol):
    """Turns the token ids of one output into text, a piece at a time, never splitting a character."""

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """Text still held back, at the end of the output (an incomplete character becomes U+FFFD)."""


class Tokenizer(Protocol):
    """Text to token ids and back, for one model. Safe to use from several threads."""

    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    chat_template_names: tuple[str, ...]
    """Templates that come with the model; requests may name them."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the model's own begin-of-sequence rule unless told otherwise.

        Other threads run meanwhile, however long it takes.
        """

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens in `text`, from its size alone: far cheaper than encoding it.

        0 where a text of any size may become a single token.
        """

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder; its pieces joined equal `decode` of the same ids."""

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """Prompt text of a conversation.

        Raises:
            NotSupported: the model has no chat template.
        """


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the files of a model say, before any weight is read."""

    name: str
    """As the user gave it."""
    path: Path
    backend: str
    architecture: str
    num_parameters: int
    vocab_size: int
    max_length: int
    """Longest context the model was made for, in tokens."""
    eos_token_ids: tuple[int, ...]
    generation_defaults: dict[str, Any]
    """Sampling fields that the model's author recommends (temperature, top_p, …)."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers a worker is built from; nothing in it is "auto" any more."""

    device: str
    dtype: str
    max_length: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    threads: int
    tunes_threads: bool = False
    """Steps may take fewer threads where that is faster and changes no result."""
    quantization: str = "none"
    """One of QUANTIZATIONS."""
    kv_cache_dtype: str = "auto"
    """One of KV_CACHE_DTYPES."""
    batch_invariant: bool = False
    """A row's result must not depend on what is computed beside it, bit for bit."""
    cache_grows: bool = False
    """The cache may begin smaller than `num_blocks` and be moved into a larger one when it is full, for which
    there is room; else it is made whole."""


def require_plain_cache(config: WorkerConfig, reason: str) -> None:
    """For a backend with one kind of cache. Raises InvalidArgument, saying the reason, for another kind."""
    if config.kv_cache_dtype != "auto":
        raise InvalidArgument("kv_cache_dtype", config.kv_cache_dtype, f"'auto', because {reason}")


def require_unquantised(config: WorkerConfig, reason: str) -> None:
    """For a backend that quantises nothing. Raises NotSupported, saying the reason, where it is asked to."""
    if config.quantization != "none":
        raise NotSupported(f"quantization is {config.quantization!r}: {reason}; allowed: 'none'")


class MemoryNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes a worker would take on its device."""

    weights: int
    activations: int
    """Peak of one step at max_num_batched_tokens and max_num_seqs, logits included."""
    kv_per_block: int


class Backend(Protocol):
    """A kind of worker: reads one kind of model files."""

    name: str

    def inspect(self, name: str, path: Path) -> ModelInfo:
        """Read the model's configuration, no weights.

        Raises:
            ModelFormatError: files are missing or of a kind this backend does not read.
        """

    def resolve(self, info: ModelInfo, *, device: str, dtype: str, threads: int) -> tuple[str, str, int]:
        """Turn "auto" (and 0 threads) into a device, a dtype and a number of threads; check the others.

        Raises:
            InvalidArgument: a device or dtype that does not exist here.
        """

    def memory_needs(self, info: ModelInfo, config: WorkerConfig) -> MemoryNeeds:
        """Bytes that `load` with this configuration would take (`num_blocks` is not looked at).

        Raises:
            NotSupported: this model cannot be quantised as `config` says.
        """

    def memory_limit(self, device: str) -> MemoryLimit:
        """What the process (for a CPU) or the device may use, and what is in use now."""

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> Worker:
        """Read the weights and make the worker.

        Raises:
            ModelFormatError: a weight file is missing, truncated or does not match the configuration.
        """

    def load_tokenizer(self, info: ModelInfo) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ModelFormatError: there is none.
        """
