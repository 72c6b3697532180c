"""AsModelConfig, its builder, and what the engine is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millstream.allspark import (
    AsCacheMode,
    AsEvictionStrategy,
    AsMHAPrefill,
    AsModelConfig,
    AsModelRuntimeConfigBuilder,
    AsSchedulingStrategy,
    TargetDevice,
)
from millstream.allspark.model_config import engine_config
from millstream.engine import Eviction
from millstream.errors import InvalidArgument, ModelFormatError, ModelNotFound, NotSupported

Builder = AsModelRuntimeConfigBuilder


def cpu(**fields: Any) -> AsModelConfig:
    return AsModelConfig(**{"model_name": "m", "model_path": "folder", "compute_unit": "CPU", **fields})


def test_defaults_are_those_of_dashinfer() -> None:
    config = AsModelConfig()
    assert (config.compute_unit, config.engine_max_length, config.engine_max_batch) == ("CUDA:0", 2048, 32)
    assert (config.swap_threshold, config.matmul_precision, config.num_threads) == (-1, "highest", 0)
    assert (config.enable_prefix_cache, config.prefix_cache_ttl) == (True, 300)
    assert (config.lora_max_rank, config.lora_max_num, config.lora_names) == (64, 5, [])
    assert config.eviction_strategy is AsEvictionStrategy.MaxLength
    assert config.scheduling_strategy is AsSchedulingStrategy.ContextPriority


def test_unknown_keywords_and_attributes_are_errors() -> None:
    with pytest.raises(TypeError, match="max_batch"):
        AsModelConfig(max_batch=3)
    with pytest.raises(AttributeError):
        AsModelConfig().max_batch = 3


def test_the_engine_is_told_everything() -> None:
    config = engine_config(
        cpu(
            engine_max_length=100,
            engine_max_batch=3,
            engine_max_prefill_length=64,
            num_threads=2,
            cache_span_size=64,
            cache_span_num_init=9,
            enable_prefix_cache=False,
            prefix_cache_ttl=7,
            eviction_strategy=AsEvictionStrategy.Random,
            data_type="float32",
            backend="torch",
            memory_fraction=0.5,
            warmup=False,
        )
    )
    assert (config.model, config.name, config.backend, config.device) == ("folder", "m", "torch", "cpu")
    assert (config.dtype, config.threads, config.max_length) == ("float32", 2, 100)
    assert (config.block_size, config.num_blocks, config.memory_fraction) == (64, 9, 0.5)
    assert (config.enable_prefix_cache, config.prefix_cache_ttl, config.warmup) == (False, 7, False)
    assert (config.max_num_seqs, config.max_num_batched_tokens) == (3, 64)
    assert config.eviction is Eviction.RANDOM


def test_what_is_left_open_is_chosen_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLSPARK_DISABLE_WARMUP", raising=False)
    config = engine_config(cpu(model_path=""))
    assert (config.model, config.dtype, config.num_blocks, config.warmup) == ("m", "auto", None, True)
    assert config.eviction is Eviction.MAX_LENGTH
    assert config.max_num_batched_tokens == 2048
    assert engine_config(cpu(engine_max_batch=3000)).max_num_batched_tokens == 3000


def test_environment_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFC_MEM_RATIO", "0.25")
    monkeypatch.setenv("ALLSPARK_DISABLE_WARMUP", "1")
    on_gpu = engine_config(cpu(compute_unit="CUDA:1"))
    assert (on_gpu.device, on_gpu.memory_fraction, on_gpu.warmup) == ("cuda:1", 0.25, False)
    assert engine_config(cpu()).memory_fraction == 0.9
    assert engine_config(cpu(compute_unit="CUDA:0", memory_fraction=0.5)).memory_fraction == 0.5
    monkeypatch.setenv("BFC_MEM_RATIO", "much")
    with pytest.raises(InvalidArgument, match="BFC_MEM_RATIO"):
        engine_config(cpu(compute_unit="CUDA:0"))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        (AsCacheMode.AsCacheDefault, "auto"),
        (AsCacheMode.AsCacheQuantI8, "int8"),
        (AsCacheMode.AsCacheQuantU4, "uint4"),
    ],
)
def test_the_cache_mode_is_the_type_of_keys_and_values(mode: AsCacheMode, dtype: str) -> None:
    assert engine_config(cpu(cache_mode=mode)).kv_cache_dtype == dtype


@pytest.mark.parametrize("unit", ["CPU", "cpu", "CPU:0", "cpu:0", "CPU:"])
def test_ways_to_say_cpu(unit: str) -> None:
    assert engine_config(cpu(compute_unit=unit)).device == "cpu"


@pytest.mark.parametrize(
    ("fields", "kind", "match"),
    [
        ({"compute_unit": "CUDA:0,1"}, NotSupported, "one device"),
        ({"compute_unit": "CPU:0,1"}, NotSupported, "NUMA"),
        ({"compute_unit": "CPU:1"}, NotSupported, "NUMA"),
        ({"compute_unit": "CPU_NUMA:0"}, NotSupported, "NUMA"),
        ({"compute_unit": "TPU:0"}, InvalidArgument, "TPU"),
        ({"compute_unit": "CUDA:x"}, InvalidArgument, "CUDA:x"),
        ({"compute_unit": None}, InvalidArgument, "compute_unit"),
        ({"cache_mode": "AsCacheDefault"}, InvalidArgument, "AsCacheMode"),
        ({"prefill_mode": AsMHAPrefill.AsPrefillFlashV2}, NotSupported, "AsPrefillFlashV2"),
        ({"prefill_mode": AsMHAPrefill.AsPrefillXformer}, NotSupported, "AsPrefillXformer"),
        ({"eviction_strategy": 0}, InvalidArgument, "AsEvictionStrategy"),
        ({"scheduling_strategy": 0}, InvalidArgument, "AsSchedulingStrategy"),
        ({"swap_threshold": 0}, NotSupported, "swap_threshold"),
        ({"text_graph": True}, NotSupported, "text_graph"),
        ({"matmul_precision": "medium"}, NotSupported, "data_type"),
        ({"lora_names": ["a"]}, NotSupported, "load_lora"),
        ({"cache_span_num_grow": 1}, NotSupported, "cache_span_num_grow"),
        ({"enable_sparsity_matmul": True}, NotSupported, "sparse"),
        ({"model_name": ""}, InvalidArgument, "model_name"),
        ({"model_path": 3}, InvalidArgument, "model_path"),
        ({"weights_path": "other"}, InvalidArgument, "weights_path"),
        ({"engine_max_length": 0}, InvalidArgument, "engine_max_length"),
        ({"engine_max_batch": 0}, InvalidArgument, "engine_max_batch"),
        ({"engine_max_batch": True}, InvalidArgument, "engine_max_batch"),
        ({"engine_max_prefill_length": -1}, InvalidArgument, "engine_max_prefill_length"),
        ({"engine_max_prefill_length": 16}, InvalidArgument, "engine_max_batch"),
        ({"cache_span_num_init": -1}, InvalidArgument, "cache_span_num_init"),
        ({"cache_span_size": 20}, InvalidArgument, "20"),
        ({"prefix_cache_ttl": 0}, InvalidArgument, "prefix_cache_ttl"),
        ({"num_threads": -1}, InvalidArgument, "threads"),
        ({"model_path": "nowhere.asgraph"}, ModelNotFound, "nowhere.asgraph"),
    ],
)
def test_what_cannot_be_done_is_refused(fields: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        engine_config(cpu(**fields))


def test_no_configuration_at_all() -> None:
    with pytest.raises(InvalidArgument, match="AsModelConfig"):
        engine_config({"model_name": "m"})


def test_a_binary_file_of_dashinfer_is_told_apart(tmp_path: Path) -> None:
    graph = tmp_path / "m.asgraph"
    graph.write_bytes(b"\x08\x01\x12\x05model")
    with pytest.raises(ModelFormatError, match="binary format"):
        engine_config(cpu(model_path=str(graph)))


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda b: b.model_name("x"), {"model_name": "x"}),
        (lambda b: b.model_dir("d", "p"), {"model_path": "d/p.asgraph", "weights_path": "d/p.asparam"}),
        (lambda b: b.model_file_path("a", "b"), {"model_path": "a", "weights_path": "b"}),
        (lambda b: b.compute_unit(TargetDevice.CUDA, [0]), {"compute_unit": "CUDA:0"}),
        (lambda b: b.compute_unit(TargetDevice.CUDA, [2, 3]), {"compute_unit": "CUDA:2,3"}),
        (lambda b: b.compute_unit(TargetDevice.CUDA, []), {"compute_unit": "CUDA:0"}),
        (lambda b: b.compute_unit(TargetDevice.CPU, [4], 6), {"compute_unit": "CPU:0", "num_threads": 6}),
        (lambda b: b.compute_unit("cpu"), {"compute_unit": "CPU:0"}),
        (lambda b: b.compute_unit("cuda", [1]), {"compute_unit": "CUDA:1"}),
        (lambda b: b.compute_unit("cpu_numa", [0, 1]), {"compute_unit": "CPU_NUMA:0,1"}),
        (lambda b: b.set_compute_unit_from_str("CUDA:0,1"), {"compute_unit": "CUDA:0,1"}),
        (lambda b: b.max_length(77), {"engine_max_length": 77}),
        (lambda b: b.max_length("77"), {"engine_max_length": 77}),
        (lambda b: b.max_batch(5), {"engine_max_batch": 5}),
        (lambda b: b.max_prefill_length(64), {"engine_max_prefill_length": 64}),
        (lambda b: b.lora_max_rank("8"), {"lora_max_rank": 8}),
        (lambda b: b.lora_max_num(2), {"lora_max_num": 2}),
        (lambda b: b.prefill_cache(False), {"enable_prefix_cache": False}),
        (lambda b: b.prefix_cache_ttl(9), {"prefix_cache_ttl": 9}),
        (lambda b: b.enable_sparsity_matmul(True), {"enable_sparsity_matmul": True}),
        (lambda b: b.kv_cache_mode(AsCacheMode.AsCacheQuantI8), {"cache_mode": AsCacheMode.AsCacheQuantI8}),
        (lambda b: b.kv_cache_span_size(128), {"cache_span_size": 128}),
        (lambda b: b.set_span_init_size(40), {"cache_span_num_init": 40}),
        (
            lambda b: b.eviction_strategy(AsEvictionStrategy.Random),
            {"eviction_strategy": AsEvictionStrategy.Random},
        ),
        (
            lambda b: b.scheduling_strategy(AsSchedulingStrategy.Balance),
            {"scheduling_strategy": AsSchedulingStrategy.Balance},
        ),
        (lambda b: b.matmul_precision("high"), {"matmul_precision": "high"}),
        (lambda b: b.data_type("float16"), {"data_type": "float16"}),
        (lambda b: b.backend("llamacpp"), {"backend": "llamacpp"}),
        (lambda b: b.memory_fraction(0.3), {"memory_fraction": 0.3}),
    ],
)
def test_each_builder_method_sets_its_fields_and_returns_the_builder(
    call: Callable[[Builder], Builder], fields: dict[str, Any]
) -> None:
    builder = Builder()
    assert call(builder) is builder
    built, plain = builder.build(), AsModelConfig()
    for name, value in fields.items():
        assert getattr(built, name) == value
    for name in set(AsModelConfig.__struct_fields__) - set(fields):
        assert getattr(built, name) == getattr(plain, name)


def test_builds_are_independent() -> None:
    builder = Builder().model_name("a")
    first = builder.build()
    builder.model_name("b")
    first.lora_names.append("x")
    second = builder.build()
    assert (first.model_name, second.model_name, second.lora_names) == ("a", "b", [])


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.max_length("long"),
        lambda b: b.max_batch(True),
        lambda b: b.compute_unit("tpu"),
        lambda b: b.compute_unit(3),
        lambda b: b.set_compute_unit_from_str("GPU:0"),
        lambda b: b.from_dict({"model_name": "m"}),
        lambda b: b.update_from_dict({"engine_max_lenght": 3}),
        lambda b: b.update_from_dict({"kv_cache_mode": "int8"}),
        lambda b: b.update_from_dict({"compute_unit": "CPU"}),
        lambda b: b.update_from_dict({"cuda_mem": {"reserve_size_mb": 600}}),
    ],
)
def test_the_builder_refuses_what_it_cannot_read(call: Callable[[Builder], Builder]) -> None:
    with pytest.raises(InvalidArgument):
        call(Builder())


def test_parse_device_type() -> None:
    assert Builder.parse_device_type("CUDA:0,1") == ("CUDA", [0, 1])
    assert Builder.parse_device_type("CPU") == ("CPU", [0])
    with pytest.raises(ValueError, match="TPU"):
        Builder.parse_device_type("TPU:0")


def test_from_dict_takes_every_key() -> None:
    built = (
        Builder()
        .from_dict(
            {
                "model_name": "m",
                "compute_unit": {"device_type": "CUDA", "device_ids": [1], "compute_thread_in_device": 0},
                "engine_max_length": 50,
                "engine_max_batch": 6,
                "engine_max_prefill_length": 40,
                "enable_prefix_cache": False,
                "prefix_cache_ttl": 12,
                "kv_cache_mode": "AsCacheQuantI8",
                "kv_cache_span_size": 64,
                "enable_sparsity_matmul": False,
                "cache_span_num_init": 3,
                "eviction_strategy": "Random",
                "matmul_precision": "highest",
                "lora_names": [],
                "cuda_mem": {"memory_ratio": 0.4},
                "data_type": "float32",
            }
        )
        .build()
    )
    assert (built.model_name, built.compute_unit, built.engine_max_length) == ("m", "CUDA:1", 50)
    assert (built.engine_max_batch, built.engine_max_prefill_length) == (6, 40)
    assert (built.enable_prefix_cache, built.prefix_cache_ttl, built.cache_span_size) == (False, 12, 64)
    assert (built.cache_mode, built.cache_span_num_init) == (AsCacheMode.AsCacheQuantI8, 3)
    assert (built.eviction_strategy, built.memory_fraction) == (AsEvictionStrategy.Random, 0.4)
    assert built.data_type == "float32"
    assert Builder().update_from_dict({"cuda_mem": {"memory_ratio": -1}}).build().memory_fraction is None
