"""AsModelConfig: DashInfer's description of a model to install, and what the engine makes of it."""

import os

import msgspec

from ..backends.worker import Backend
from ..engine import Eviction, ModelConfig
from ..errors import InvalidArgument, NotSupported
from .compute_unit import device_of
from .enums import AsCacheMode, AsEvictionStrategy, AsMHAPrefill, AsSchedulingStrategy
from .serialized import source_of

DEFAULT_BATCHED_TOKENS = 2048
"""Tokens of a step where `engine_max_prefill_length` says nothing."""


class AsModelConfig(msgspec.Struct):
    """DashInfer's fields under DashInfer's names and defaults; the last five are Millstream's own.

    | field | meaning here |
    |---|---|
    | model_path | what `model_dir` names, or a folder, GGUF file, hub id or bundled name; empty: model_name |
    | weights_path | what belongs to model_path; may be empty |
    | compute_unit | "CPU" or "CUDA:<number>"; several devices and NUMA nodes are refused |
    | engine_max_length | longest request, prompt and output together |
    | engine_max_batch | most sequences in a step |
    | engine_max_prefill_length | most tokens of a step, so the longest chunk of a prompt; 0 chooses |
    | num_threads | 0 chooses the physical cores |
    | cache_span_size | tokens of a KV block |
    | cache_mode | data type of keys and values in the cache |
    | cache_span_num_init | number of KV blocks; 0 chooses |
    | prefix_cache_ttl | seconds an unused prefix is kept |
    | eviction_strategy | who gives way when blocks run short; it is resumed later, never ended |
    | scheduling_strategy | both members are one: a step serves running requests and prompts together |
    | lora_max_rank, lora_max_num | bounds on adapters |

    Refused at `install_model` with any value but DashInfer's default, because nothing here does them:
    swap_threshold, text_graph, matmul_precision (`data_type` chooses the precision), lora_names,
    cache_span_num_grow (the pool has one size), prefill_mode, enable_sparsity_matmul.

    An unknown keyword is a TypeError, an unknown attribute an AttributeError.
    """

    model_name: str = ""
    model_path: str = ""
    weights_path: str = ""
    compute_unit: str = "CUDA:0"
    engine_max_length: int = 2048
    engine_max_batch: int = 32
    engine_max_prefill_length: int = 0
    swap_threshold: int = -1
    text_graph: bool = False
    num_threads: int = 0
    matmul_precision: str = "highest"
    lora_names: list[str] = []
    cache_span_size: int = 32
    cache_span_num_init: int = 0
    cache_span_num_grow: int = 0
    enable_prefix_cache: bool = True
    prefix_cache_ttl: float = 300
    prefill_mode: AsMHAPrefill = AsMHAPrefill.AsPrefillDefault
    cache_mode: AsCacheMode = AsCacheMode.AsCacheDefault
    eviction_strategy: AsEvictionStrategy = AsEvictionStrategy.MaxLength
    scheduling_strategy: AsSchedulingStrategy = AsSchedulingStrategy.ContextPriority
    enable_sparsity_matmul: bool = False
    lora_max_rank: int = 64
    lora_max_num: int = 5
    data_type: str = "auto"
    """float32, bfloat16 or float16; "auto" takes what was serialised, or what suits the device."""
    quantization: str = "none"
    """none, int8 or int4; "none" takes what was serialised."""
    backend: str | Backend = "auto"
    memory_fraction: float | None = None
    """Share of the memory limit; None takes BFC_MEM_RATIO on a GPU and the engine's default elsewhere."""
    warmup: bool | None = None
    """None warms up, unless ALLSPARK_DISABLE_WARMUP is 1."""


_REASONS = {
    "swap_threshold": "no tensor is swapped out",
    "text_graph": "there is no graph file in text form",
    "matmul_precision": "data_type chooses the precision of weights and products",
    "lora_names": "adapters are loaded by load_lora, once the model runs",
    "cache_span_num_grow": "the block pool has one size, cache_span_num_init",
    "prefill_mode": "the device decides which attention kernel runs",
    "enable_sparsity_matmul": "sparse products are not supported",
}
_ENUMS = {
    "prefill_mode": AsMHAPrefill,
    "cache_mode": AsCacheMode,
    "eviction_strategy": AsEvictionStrategy,
    "scheduling_strategy": AsSchedulingStrategy,
}
_LEAST = {
    "engine_max_length": 2,
    "engine_max_batch": 1,
    "engine_max_prefill_length": 0,
    "cache_span_num_init": 0,
}
_CACHES = {
    AsCacheMode.AsCacheDefault: "auto",
    AsCacheMode.AsCacheQuantI8: "int8",
    AsCacheMode.AsCacheQuantU4: "uint4",
}
_EVICTIONS = {AsEvictionStrategy.MaxLength: Eviction.MAX_LENGTH, AsEvictionStrategy.Random: Eviction.RANDOM}


def engine_config(config: AsModelConfig) -> ModelConfig:
    """The engine's configuration for `config`.

    Raises:
        InvalidArgument: a value has the wrong type or lies outside its range.
        NotSupported: it asks for something that does not exist here.
        ModelNotFound, ModelFormatError: the path of a serialised model leads nowhere.
    """
    _check(config)
    device = device_of(config.compute_unit)
    model, data_type, quantization = source_of(config.model_path or config.model_name, config.weights_path)
    if config.data_type != "auto":
        data_type = config.data_type
    if config.quantization != "none":
        quantization = config.quantization
    made = ModelConfig(
        model=model,
        name=config.model_name,
        backend=config.backend,
        device=device,
        dtype=data_type,
        quantization=quantization,
        kv_cache_dtype=_CACHES[config.cache_mode],
        threads=config.num_threads,
        max_length=config.engine_max_length,
        block_size=config.cache_span_size,
        num_blocks=config.cache_span_num_init or None,
        enable_prefix_cache=config.enable_prefix_cache,
        prefix_cache_ttl=config.prefix_cache_ttl,
        max_num_seqs=config.engine_max_batch,
        max_num_batched_tokens=config.engine_max_prefill_length
        or max(DEFAULT_BATCHED_TOKENS, config.engine_max_batch),
        max_adapters=config.lora_max_num,
        max_adapter_rank=config.lora_max_rank,
        eviction=_EVICTIONS[config.eviction_strategy],
        warmup=_warmup(config),
    )
    fraction = _memory_fraction(config, device)
    return made if fraction is None else msgspec.structs.replace(made, memory_fraction=fraction)


def _check(config: AsModelConfig) -> None:
    if not isinstance(config, AsModelConfig):
        raise InvalidArgument("model configuration", config, "an AsModelConfig, or a builder of one")
    for field in ("model_name", "model_path", "weights_path"):
        if not isinstance(getattr(config, field), str):
            raise InvalidArgument(field, getattr(config, field), "a string")
    if not config.model_name:
        raise InvalidArgument("model_name", config.model_name, "the name that requests will use")
    for field, least in _LEAST.items():
        value = getattr(config, field)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidArgument(field, value, f"an integer from {least}")
    if 0 < config.engine_max_prefill_length < config.engine_max_batch:
        raise InvalidArgument(
            "engine_max_prefill_length",
            config.engine_max_prefill_length,
            f"0, or at least engine_max_batch ({config.engine_max_batch}), one token for each sequence",
        )
    for field, kind in _ENUMS.items():
        if not isinstance(getattr(config, field), kind):
            raise InvalidArgument(field, getattr(config, field), f"a member of {kind.__name__}")
    for field, reason in _REASONS.items():
        value, default = getattr(config, field), getattr(_DEFAULTS, field)
        if value != default:
            raise NotSupported(f"{field} is {value!r}: {reason}; allowed: {default!r}")


def _memory_fraction(config: AsModelConfig, device: str) -> float | None:
    """Share of the memory limit; None leaves it to the engine."""
    if config.memory_fraction is not None:
        return config.memory_fraction
    ratio = os.environ.get("BFC_MEM_RATIO") if device != "cpu" else None
    try:
        return None if ratio is None else float(ratio)
    except ValueError as error:
        raise InvalidArgument("BFC_MEM_RATIO", ratio, "a number above 0, at most 1") from error


def _warmup(config: AsModelConfig) -> bool:
    if config.warmup is not None:
        return config.warmup
    return os.environ.get("ALLSPARK_DISABLE_WARMUP", "0") in ("", "0")


_DEFAULTS = AsModelConfig()
