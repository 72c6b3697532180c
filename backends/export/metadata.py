"""The hyperparameters of a checkpoint in the form of a GGUF file, and what of it llama.cpp cannot run."""

import math
from typing import Any

from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, RopeScalingType
from transformers import PretrainedConfig

from ...errors import NotSupported
from ..torch.decoder.config import DecoderConfig, text_config
from ..torch.decoder.rope import Rope
from .architectures import ARCHITECTURES, Architecture
from .tensors import GGUFTensor

_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Where in llama.cpp a model of this configuration belongs.

    Raises:
        NotSupported: no architecture in the table runs it.
    """
    model_type = text_config(config).model_type
    found = ARCHITECTURES.get(model_type)
    if found is None:
        raise NotSupported(
            f"models of type {model_type!r} cannot be exported to GGUF; allowed: {', '.join(ARCHITECTURES)}"
        )
    return found


def check_architecture(text: PretrainedConfig, config: DecoderConfig, architecture: Architecture) -> None:
    """Raise NotSupported if llama.cpp would compute something else than the checkpoint means."""
    hidden_heads = config.num_heads * config.head_dim
    rotary = [layer.rope is not None for layer in config.layers]
    skips = architecture.rope_skips
    scales = {layer.attention.scale for layer in config.layers}
    softcaps = {layer.attention.softcap for layer in config.layers}
    unfit = {
        "activation": config.activation is not architecture.activation,
        "width of its heads": architecture.square_attention and hidden_heads != config.hidden_size,
        "bias of attention's output": config.output_bias and not architecture.output_bias,
        "bias of the MLP": config.mlp_bias and not architecture.mlp_bias,
        "untied head": architecture.head == "never" and not config.tied_head,
        "choice of layers without rotary embedding": rotary
        != [skips is None or (i + 1) % skips != 0 for i in range(len(rotary))],
        "attention scale": not architecture.multipliers
        and any(not math.isclose(s, _fixed_scale(config, architecture), rel_tol=1e-6) for s in scales),
        "soft cap of attention": any((cap is not None) != architecture.attention_softcap for cap in softcaps),
        "soft cap of the logits": config.logit_softcap is not None and not architecture.logit_softcap,
        "scale of embeddings": not architecture.multipliers
        and config.embedding_scale != (math.sqrt(config.hidden_size) if architecture.embedding_root else 1.0),
        "scale of residuals or logits": not architecture.multipliers
        and (config.residual_scale, config.logit_scale) != (1.0, 1.0),
    }
    for what, is_unfit in unfit.items():
        if is_unfit:
            raise NotSupported(
                f"llama.cpp's {architecture.name!r} does not have this {text.model_type}'s {what}"
            )


def context_length(config: DecoderConfig, architecture: Architecture) -> int:
    """Longest sequence that llama.cpp computes as the checkpoint means it.

    Where it knows no sliding window this ends at the window, up to which there is no difference.
    """
    windows = [layer.attention.window for layer in config.layers if layer.attention.window is not None]
    return config.max_length if architecture.windows else min([config.max_length, *windows])


def write_hyperparameters(
    writer: GGUFWriter, text: PretrainedConfig, config: DecoderConfig, architecture: Architecture
) -> None:
    """Add everything but rotary scaling and the tokenizer to the file's key-value pairs."""
    writer.add_block_count(len(config.layers))
    writer.add_context_length(context_length(config, architecture))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    attention = config.layers[0].attention
    if architecture.attention_softcap and attention.softcap is not None:
        writer.add_attn_logit_softcapping(attention.softcap)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if architecture.multipliers:
        writer.add_attention_scale(attention.scale)
        writer.add_embedding_scale(config.embedding_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(1.0 / config.logit_scale)
    windows = [layer.attention.window for layer in config.layers]
    window = next((size for size in windows if size is not None), None)
    if architecture.windows and window is not None:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([size is not None for size in windows])


def write_rope(
    writer: GGUFWriter, text: PretrainedConfig, config: DecoderConfig, architecture: Architecture
) -> list[GGUFTensor]:
    """Add the rotary embedding to the key-value pairs; gives the tensors that belong to it.

    Raises:
        NotSupported: the architecture does not have this embedding.
    """
    windowed, full = _rope_parameters(text)
    rope = _rope_without_window(config)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * full.get("partial_rotary_factor", 1.0)))
    if windowed is not None:
        if windowed["rope_type"] != "default":
            raise NotSupported(
                f"llama.cpp's {architecture.name!r} has no {windowed['rope_type']!r} rotary embedding in "
                "layers with a sliding window"
            )
        writer.add_rope_freq_base_swa(windowed["rope_theta"])
    kind = full["rope_type"]
    if kind == "default":
        return []
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
        return []
    if kind == "yarn":
        _write_yarn(writer, full, rope.magnitude, has_windows=windowed is not None)
        return []
    if kind == "llama3" and architecture.rope_factors:
        return [_factors("rope_freqs.weight", _divisors(rope, full["rope_theta"]))]
    if kind == "longrope" and architecture.rope_factors:
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(rope.magnitude)
        return [
            _factors(f"rope_factors_{length}.weight", tuple(full[f"{length}_factor"]))
            for length in ("long", "short")
        ]
    raise NotSupported(f"llama.cpp's {architecture.name!r} has no {kind!r} rotary embedding")


def _rope_parameters(text: PretrainedConfig) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Parameters of layers with a window where they differ, and of the others."""
    parameters: dict[str, Any] = text.rope_parameters
    if "full_attention" not in parameters:
        return None, parameters
    return parameters["sliding_attention"], parameters["full_attention"]


def _rope_without_window(config: DecoderConfig) -> Rope:
    """The rotary embedding of layers that see everything, or of all where there are no such layers."""
    found = [layer.rope for layer in config.layers if layer.attention.window is None]
    return config.ropes[next((index for index in found if index is not None), 0)]


def _write_yarn(
    writer: GGUFWriter, parameters: dict[str, Any], magnitude: float, *, has_windows: bool
) -> None:
    changed = [
        name
        for name, default in _YARN_DEFAULTS.items()
        if parameters.get(name) is not None and parameters[name] != default
    ]
    if changed:
        raise NotSupported(
            f"yarn's {', '.join(changed)} cannot be written to GGUF files, only the usual ones"
        )
    factor = parameters["factor"]
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
    usual = 0.1 * math.log(factor) + 1.0
    if not math.isclose(magnitude, usual, rel_tol=1e-6):
        if has_windows:  # llama.cpp would take the factor for those layers, too
            raise NotSupported("yarn's attention_factor cannot be written to GGUF files with sliding windows")
        writer.add_rope_scaling_attn_factors(magnitude / usual)


def _divisors(rope: Rope, theta: float) -> tuple[float, ...]:
    """By what the scaling divides each of the plain frequencies."""
    count = len(rope.frequencies)
    return tuple(theta ** (-i / count) / frequency for i, frequency in enumerate(rope.frequencies))


def _factors(name: str, values: tuple[float, ...]) -> GGUFTensor:
    return GGUFTensor(name, (len(values),), Kind.F32, values)


def _fixed_scale(config: DecoderConfig, architecture: Architecture) -> float:
    is_narrow = len(config.layers) == architecture.narrow_scale_layers
    return 1.0 / math.sqrt(config.hidden_size // config.num_heads if is_narrow else config.head_dim)
