"""DIConfigBuilder: a model's configurations as one YAML file, for DashInferModel."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from ..model_config import AsModelConfig
from ..runtime_config import AsModelRuntimeConfigBuilder

_MODEL_KEYS = (
    "huggingface_id",
    "modelscope_id",
    "architectures",
    "hidden_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "use_sliding_window",
    "vocab_size",
)
_GENERATION_KEYS = (
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "presence_penalty",
    "repetition_penalty",
    "stop_words_ids",
    "temperature",
    "top_k",
    "top_p",
)
_COMMENTS = {
    "model": "What the model is, from its own configuration.",
    "runtime_config": (
        "How to run it: keys of AsModelRuntimeConfigBuilder.from_dict. device_type is CPU or CUDA; "
        "engine_max_length counts prompt and output together."
    ),
    "generation_config": "What requests ask for by default: keys of ASGenerationConfigBuilder.",
    "tokenizer": "local_path names a folder with a tokenizer; empty means the model's own.",
}


class DIConfigBuilder:
    """Each method takes a section and returns the builder."""

    def __init__(self) -> None:
        self._sections: dict[str, dict[str, Any]] = {section: {} for section in _COMMENTS}

    def model(self, as_model_config: Mapping[str, Any], hf_id: str = "", modelscope_id: str = "") -> Self:
        """The model's configuration, of which the keys that describe its shape are kept."""
        fields = {"huggingface_id": hf_id, "modelscope_id": modelscope_id, **as_model_config}
        self._sections["model"] = _kept(fields, _MODEL_KEYS)
        return self

    def runtime_config(self, as_runtime_cfg: AsModelConfig) -> Self:
        """The runtime configuration without its paths."""
        cfg = as_runtime_cfg
        device, ids = AsModelRuntimeConfigBuilder.parse_device_type(cfg.compute_unit)
        ratio = {} if cfg.memory_fraction is None else {"memory_ratio": cfg.memory_fraction}
        self._sections["runtime_config"] = {
            "model_name": cfg.model_name,
            "engine_max_length": cfg.engine_max_length,
            "engine_max_batch": cfg.engine_max_batch,
            "engine_max_prefill_length": cfg.engine_max_prefill_length,
            "matmul_precision": cfg.matmul_precision,
            "data_type": cfg.data_type,
            "lora_names": list(cfg.lora_names),
            "compute_unit": {
                "device_type": device,
                "device_ids": ids,
                "compute_thread_in_device": cfg.num_threads,
            },
            "kv_cache_mode": cfg.cache_mode.name,
            "kv_cache_span_size": cfg.cache_span_size,
            "cache_span_num_init": cfg.cache_span_num_init,
            "enable_prefix_cache": cfg.enable_prefix_cache,
            "prefix_cache_ttl": cfg.prefix_cache_ttl,
            "enable_sparsity_matmul": cfg.enable_sparsity_matmul,
            "cuda_mem": ratio,
            "eviction_strategy": cfg.eviction_strategy.name,
        }
        return self

    def generation_config(self, hf_generation_config: Mapping[str, Any]) -> Self:
        """A built generation configuration, of which DashInfer's keys are kept."""
        self._sections["generation_config"] = _kept(hf_generation_config, _GENERATION_KEYS)
        return self

    def tokenizer(self, source: str = "modelscope", local_path: str = "") -> Self:
        """Where the tokenizer comes from."""
        self._sections["tokenizer"] = {"source": source, "local_path": local_path}
        return self

    def build_py_obj(self) -> dict[str, dict[str, Any]]:
        """The sections as dicts."""
        return {section: dict(fields) for section, fields in self._sections.items()}

    def to_yaml(self) -> str:
        """The sections as YAML, each under a comment."""
        texts = (
            f"# {_COMMENTS[section]}\n" + msgspec.yaml.encode({section: fields}).decode()
            for section, fields in self._sections.items()
        )
        return "\n".join(texts)

    def build_yaml_path(self, output_path: str | os.PathLike[str]) -> None:
        """Write the YAML file, making its folder if need be."""
        path = Path(output_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_yaml(), encoding="utf-8")


def _kept(fields: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: fields[key] for key in keys if key in fields}
