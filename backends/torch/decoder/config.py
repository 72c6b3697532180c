"""DecoderConfig: a model's config.json and its family's differences, made into plain numbers."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from ....errors import ModelFormatError, NotSupported
from ..kernels.interface import Activation, AttentionSpec, KVShape
from .families import ACTIVATIONS, FAMILIES, TEXT_PART_OF, Family, Flag, NormNames
from .rope import ROPE_TYPES, Rope, read_rope

DTYPES = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})
"""Types to compute in, by the names that WorkerConfig uses."""


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from layer to layer."""

    attention: AttentionSpec
    rope: int | None
    """Index into `DecoderConfig.ropes`; None: this layer has no rotary embedding."""


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Everything the native decoder and its loader need to know."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int
    """Longest sequence that the rotary embedding is set up for."""
    layers: tuple[LayerConfig, ...]
    ropes: tuple[Rope, ...]
    activation: Activation
    norm_eps: float
    norm_offset: float
    norms: NormNames
    qk_norm: str | None
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    fused_qkv: bool
    fused_gate_up: bool
    neighbour_rope: bool
    tied_head: bool
    has_head: bool
    """False: it gives hidden states alone."""
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float | None

    @property
    def kv_shapes(self) -> tuple[KVShape, ...]:
        """One for each layer."""
        return (KVShape(self.num_kv_heads, self.head_dim, self.head_dim),) * len(self.layers)


def read_config(path: Path) -> PretrainedConfig:
    """config.json of the model in folder `path`; code that comes with a model is never run.

    Raises:
        ModelFormatError: there is none, it cannot be read, or transformers does not know the model's type.
    """
    if not (path / "config.json").is_file():
        raise ModelFormatError(f"{path} has no config.json")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers lets whatever a wrong value leads to escape
        reason = " ".join(str(error).split())
        raise ModelFormatError(f"{path / 'config.json'} cannot be read: {reason}") from error
    return config


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that describes the text model; the whole of it for most models."""
    if config.model_type in TEXT_PART_OF:
        part: PretrainedConfig = config.text_config
        return part
    return config


def is_native(config: PretrainedConfig) -> bool:
    """Whether the native decoder runs this model; if not, transformers' own module does."""
    text = text_config(config)
    family = FAMILIES.get(text.model_type)
    if family is None or getattr(config, "quantization_config", None) is not None:
        return False
    return (
        getattr(text, family.activation_from, None) in ACTIVATIONS
        and not attends_both_ways(text)
        and all(parameters["rope_type"] in ROPE_TYPES for parameters in _rope_parameters(text).values())
    )


def attends_both_ways(text: PretrainedConfig) -> bool:
    """Whether the configuration of a decoder says that its tokens see those that come after them."""
    both_ways = getattr(text, "use_bidirectional_attention", False)
    return both_ways in (True, "all") or getattr(text, "is_causal", True) is False


def decoder_config(config: PretrainedConfig, max_length: int, *, has_head: bool = True) -> DecoderConfig:
    """Read a native model's configuration.

    Args:
        max_length: longest sequence to be served. Where a rotary embedding depends on the sequence's length
            (dynamic, longrope) this length decides, so that all sequences can share cached blocks.
        has_head: False for a checkpoint without one, or whose head is not wanted.

    Raises:
        NotSupported: the model is not native.
    """
    if not is_native(config):
        raise NotSupported(f"the native decoder does not run models of type {config.model_type!r}")
    text = text_config(config)
    family = FAMILIES[text.model_type]
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    layers, ropes = _layers(text, family, head_dim, max_length)
    embedding_scale = _number(text, family.embedding_scale_from, 1.0)
    if family.embedding_root:
        embedding_scale *= math.sqrt(text.hidden_size)
    return DecoderConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_heads=text.num_attention_heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=head_dim,
        max_length=max_length,
        layers=layers,
        ropes=ropes,
        activation=ACTIVATIONS[getattr(text, family.activation_from)],
        norm_eps=text.rms_norm_eps,
        norm_offset=family.norm_offset,
        norms=family.norms,
        qk_norm=family.qk_norm,
        qkv_bias=_flag(text, family.qkv_bias),
        output_bias=_flag(text, family.output_bias),
        mlp_bias=_flag(text, family.mlp_bias),
        fused_qkv=family.fused_qkv,
        fused_gate_up=family.fused_gate_up,
        neighbour_rope=family.neighbour_rope,
        tied_head=bool(text.tie_word_embeddings),
        has_head=has_head,
        embedding_scale=embedding_scale,
        residual_scale=_number(text, family.residual_scale_from, 1.0),
        logit_scale=1.0 / _number(text, family.logit_divisor_from, 1.0),
        logit_softcap=_optional(text, family.logit_softcap_from),
    )


def _layers(
    text: PretrainedConfig, family: Family, head_dim: int, max_length: int
) -> tuple[tuple[LayerConfig, ...], tuple[Rope, ...]]:
    scale_dim = _number(text, family.scale_dim_from, head_dim)
    scale = _number(text, family.scale_from, scale_dim**-0.5)
    softcap = _optional(text, family.attention_softcap_from)
    kinds = list(_rope_parameters(text))
    ropes = tuple(read_rope(text, kind, head_dim, max_length) for kind in kinds)
    windows = _windows(text, family)
    rotary = _rotary(text, family, windows)
    # One embedding for all layers, or one for each type of layer.
    kind_of = (
        [0] * len(windows) if kinds == [None] else [kinds.index(kind) for kind in text.layer_types or ()]
    )
    layers = tuple(
        LayerConfig(AttentionSpec(scale, window, softcap), kind_of[i] if rotary[i] else None)
        for i, window in enumerate(windows)
    )
    return layers, ropes


def _rope_parameters(text: PretrainedConfig) -> dict[str | None, dict[str, Any]]:
    """Rotary parameters by layer type, or under None where all layers share them."""
    parameters: dict[Any, Any] = text.rope_parameters or {}
    types = getattr(text, "layer_types", None) or ()
    nested = {
        kind: parameters[kind] for kind in dict.fromkeys(types) if isinstance(parameters.get(kind), dict)
    }
    return nested or {None: parameters}


def _windows(text: PretrainedConfig, family: Family) -> list[int | None]:
    count = text.num_hidden_layers
    window: int | None = getattr(text, "sliding_window", None)
    if family.windows == "none" or window is None:
        return [None] * count
    if family.windows == "all":
        return [window] * count
    return [window if kind == "sliding_attention" else None for kind in text.layer_types[:count]]


def _rotary(text: PretrainedConfig, family: Family, windows: list[int | None]) -> list[bool]:
    if family.rope_on == "no_rope_layers":
        return [bool(flag) for flag in text.no_rope_layers[: len(windows)]]
    if family.rope_on == "windowed" and text.sliding_window is not None:
        return [window is not None for window in windows]
    return [True] * len(windows)


def _flag(text: PretrainedConfig, flag: Flag) -> bool:
    return flag if isinstance(flag, bool) else bool(getattr(text, flag, False))


def _optional(text: PretrainedConfig, name: str | None) -> float | None:
    value = None if name is None else getattr(text, name, None)
    return None if value is None else float(value)


def _number(text: PretrainedConfig, name: str | None, neutral: float) -> float:
    value = _optional(text, name)
    return neutral if value is None else value
