"""AsModelRuntimeConfigBuilder: DashInfer's fluent way to an AsModelConfig."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec

from ..backends.worker import Backend
from ..errors import InvalidArgument
from .compute_unit import format_compute_unit, parse_compute_unit
from .enums import AsCacheMode, AsEvictionStrategy, AsSchedulingStrategy, TargetDevice
from .model_config import AsModelConfig
from .serialized import paths_of


def get_cache_mode_from_str(s: str) -> AsCacheMode:
    """The member of AsCacheMode with the name `s`."""
    mode: AsCacheMode = _member("kv_cache_mode", s, AsCacheMode)
    return mode


class AsModelRuntimeConfigBuilder:
    """Each method sets a field and returns the builder; `build` gives the configuration.

    Nothing is looked up while building: what cannot be done is refused by `install_model`. `AsModelConfig`
    says what each field means.
    """

    def __init__(self) -> None:
        self._config = AsModelConfig()

    def model_name(self, model_name: str) -> Self:
        """Name under which the model is installed."""
        return self._set("model_name", model_name)

    def model_dir(self, model_dir: str | os.PathLike[str], file_name_prefix: str) -> Self:
        """Folder and name of a model that `serialize_to_path` wrote."""
        graph, weights = paths_of(model_dir, file_name_prefix)
        return self.model_file_path(graph, weights)

    def model_file_path(
        self, model_file_name: str | os.PathLike[str], weight_file_path: str | os.PathLike[str] = ""
    ) -> Self:
        """Both paths of a serialised model; or a folder, GGUF file, hub id or bundled name, once or twice."""
        self._set("model_path", os.fspath(model_file_name))
        return self._set("weights_path", os.fspath(weight_file_path))

    def compute_unit(
        self,
        target_device: TargetDevice | str,
        device_id_array: Sequence[int] | None = None,
        compute_thread_in_device: int = 0,
    ) -> Self:
        """Kind and numbers of the devices, and the number of threads of a CPU (0: its physical cores)."""
        if isinstance(target_device, str):
            device, ids = parse_compute_unit(target_device)
        elif isinstance(target_device, TargetDevice):
            device, ids = target_device, [0]
        else:
            raise InvalidArgument("target_device", target_device, "a member of TargetDevice, or its name")
        if device_id_array is not None:
            ids = list(device_id_array)
        self._set("compute_unit", format_compute_unit(device, ids))
        return self._set("num_threads", compute_thread_in_device)

    def set_compute_unit_from_str(self, compute_unit: str) -> Self:
        """The devices as one string, for example "CUDA:0" or "CPU"."""
        parse_compute_unit(compute_unit)
        return self._set("compute_unit", compute_unit)

    @staticmethod
    def parse_device_type(compute_unit: str) -> tuple[str, list[int]]:
        """Name of the kind of device and numbers of the devices in a compute unit."""
        device, ids = parse_compute_unit(compute_unit)
        return device.name, ids

    def max_length(self, length: int | str) -> Self:
        """Longest request in tokens, prompt and output together."""
        return self._set("engine_max_length", _integer("max_length", length))

    def max_batch(self, batch: int | str) -> Self:
        """Most sequences in a step."""
        return self._set("engine_max_batch", _integer("max_batch", batch))

    def max_prefill_length(self, length: int) -> Self:
        """Longest chunk of a prompt in one step, in tokens; 0 chooses."""
        return self._set("engine_max_prefill_length", _integer("max_prefill_length", length))

    def lora_max_rank(self, rank: int | str) -> Self:
        """Largest rank of an adapter."""
        return self._set("lora_max_rank", _integer("lora_max_rank", rank))

    def lora_max_num(self, num: int | str) -> Self:
        """Most adapters."""
        return self._set("lora_max_num", _integer("lora_max_num", num))

    def prefill_cache(self, enable: bool = True) -> Self:
        """Whether prompts share the cache of equal beginnings."""
        return self._set("enable_prefix_cache", enable)

    def prefix_cache_ttl(self, ttl: float = 300) -> Self:
        """Seconds for which an unused prefix is kept."""
        return self._set("prefix_cache_ttl", ttl)

    def enable_sparsity_matmul(self, enable: bool = False) -> Self:
        """Sparse products."""
        return self._set("enable_sparsity_matmul", enable)

    def kv_cache_mode(self, cache_mode: AsCacheMode) -> Self:
        """How keys and values are stored."""
        return self._set("cache_mode", cache_mode)

    def kv_cache_span_size(self, span_size: int) -> Self:
        """Tokens of a KV block: 16, 32, 64 or 128."""
        return self._set("cache_span_size", _integer("kv_cache_span_size", span_size))

    def set_span_init_size(self, span_init_size: int) -> Self:
        """Number of KV blocks; 0 chooses."""
        return self._set("cache_span_num_init", _integer("span_init_size", span_init_size))

    def eviction_strategy(self, strategy: AsEvictionStrategy) -> Self:
        """Which request gives way, and is resumed later, when blocks run short."""
        return self._set("eviction_strategy", strategy)

    def scheduling_strategy(self, strategy: AsSchedulingStrategy) -> Self:
        """Order of prompts and running requests."""
        return self._set("scheduling_strategy", strategy)

    def matmul_precision(self, precision: str) -> Self:
        """Precision of products."""
        return self._set("matmul_precision", precision)

    def data_type(self, data_type: str) -> Self:
        """Data type of the weights, "auto" for the model's own (Millstream's)."""
        return self._set("data_type", data_type)

    def quantization(self, quantization: str) -> Self:
        """What becomes of the weights while they are loaded: none, int8 or int4 (Millstream's)."""
        return self._set("quantization", quantization)

    def backend(self, backend: str | Backend) -> Self:
        """Which backend loads the model, "auto" for the one that reads its files (Millstream's)."""
        return self._set("backend", backend)

    def memory_fraction(self, fraction: float | None) -> Self:
        """Share of the memory limit that all models together may take (Millstream's)."""
        return self._set("memory_fraction", fraction)

    def from_dict(self, rfield: Mapping[str, Any]) -> Self:
        """Take the `runtime_config` section of a model's YAML file.

        Raises:
            InvalidArgument: a needed key is missing, or one is unknown.
        """
        for key in ("model_name", "compute_unit", "engine_max_length", "engine_max_batch"):
            if key not in rfield:
                raise InvalidArgument("runtime_config", sorted(rfield), f"a mapping with {key}")
        return self.update_from_dict(rfield)

    def update_from_dict(self, rfield: Mapping[str, Any]) -> Self:
        """Take those keys of a `runtime_config` section that are there.

        Raises:
            InvalidArgument: a key is unknown or its value unusable.
        """
        for key, value in rfield.items():
            take = _FROM_DICT.get(key)
            if take is None:
                raise InvalidArgument("runtime_config key", key, f"one of {sorted(_FROM_DICT)}")
            take(self, value)
        return self

    def build(self) -> AsModelConfig:
        """A configuration of its own; what is set afterwards does not change it."""
        return msgspec.structs.replace(self._config, lora_names=list(self._config.lora_names))

    def _set(self, field: str, value: object) -> Self:
        setattr(self._config, field, value)
        return self


def _integer(name: str, value: int | str) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(value)
        return int(value)
    except ValueError as error:
        raise InvalidArgument(name, value, "an integer") from error


def _member(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, kind):
        return value
    if value not in kind.__members__:
        raise InvalidArgument(name, value, f"one of {list(kind.__members__)}")
    return kind[value]


def _take_compute_unit(builder: AsModelRuntimeConfigBuilder, value: Any) -> None:
    known = {"device_type", "device_ids", "compute_thread_in_device"}
    if not isinstance(value, Mapping) or "device_type" not in value or not known.issuperset(value):
        raise InvalidArgument("compute_unit", value, f"a mapping with {sorted(known)}")
    builder.compute_unit(
        value["device_type"], value.get("device_ids"), value.get("compute_thread_in_device", 0)
    )


def _take_cuda_mem(builder: AsModelRuntimeConfigBuilder, value: Any) -> None:
    ratio = value.get("memory_ratio", -1) if isinstance(value, Mapping) else None
    if ratio is None or not {"memory_ratio"}.issuperset(value):
        raise InvalidArgument("cuda_mem", value, "a mapping with memory_ratio, or an empty one")
    builder.memory_fraction(None if float(ratio) == -1 else float(ratio))


_FROM_DICT: dict[str, Callable[[AsModelRuntimeConfigBuilder, Any], object]] = {
    "model_name": AsModelRuntimeConfigBuilder.model_name,
    "compute_unit": _take_compute_unit,
    "engine_max_length": AsModelRuntimeConfigBuilder.max_length,
    "engine_max_batch": AsModelRuntimeConfigBuilder.max_batch,
    "engine_max_prefill_length": AsModelRuntimeConfigBuilder.max_prefill_length,
    "enable_prefix_cache": AsModelRuntimeConfigBuilder.prefill_cache,
    "prefix_cache_ttl": AsModelRuntimeConfigBuilder.prefix_cache_ttl,
    "kv_cache_mode": lambda builder, value: builder.kv_cache_mode(get_cache_mode_from_str(value)),
    "kv_cache_span_size": AsModelRuntimeConfigBuilder.kv_cache_span_size,
    "enable_sparsity_matmul": AsModelRuntimeConfigBuilder.enable_sparsity_matmul,
    "cache_span_num_init": AsModelRuntimeConfigBuilder.set_span_init_size,
    "eviction_strategy": lambda builder, value: builder.eviction_strategy(
        _member("eviction_strategy", value, AsEvictionStrategy)
    ),
    "matmul_precision": AsModelRuntimeConfigBuilder.matmul_precision,
    "lora_names": lambda builder, value: builder._set("lora_names", list(value)),
    "cuda_mem": _take_cuda_mem,
    "data_type": AsModelRuntimeConfigBuilder.data_type,
}
