"""What a transformers configuration says before any weight is read: does it run here, and on what cache."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from ....errors import NotSupported
from ..kernels.interface import KVShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPLACED = frozenset({"bloom", "codegen", "falcon", "gptj", "gpt_neo", "mpt"})
"""Families, as configurations name them, that run on attention modules of our own."""
ALIBI_DIMS = 8
"""Elements that linear position biases add to every key; four are used, eight keep rows aligned."""


def causal_class(config: PretrainedConfig) -> "type[PreTrainedModel]":
    """The transformers class of a configuration; brings in transformers' model code, which takes its time.

    Raises:
        NotSupported: there is none, or it cannot run on the paged cache.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise NotSupported(f"{kind} is an encoder-decoder model; only decoder-only models run here")
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    models: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    cls: type[PreTrainedModel] | None = models.get(type(config), None)
    if cls is None:
        raise NotSupported(f"{kind} has no causal language model in transformers")
    if getattr(config, "quantization_config", None) is not None:
        method = _quantisation(config)
        raise NotSupported(f"{cls.__name__} with weights quantised by {method} does not run here")
    if getattr(config.get_text_config(decoder=True), "index_topk", None) is not None:
        raise NotSupported(f"{cls.__name__} lets an indexer select keys, which the paged cache does not do")
    if getattr(cls, "_is_stateful", False):
        raise NotSupported(f"{cls.__name__} keeps a recurrent state, which the paged cache does not hold")
    if kind not in REPLACED and not cls._can_set_attn_implementation():
        raise NotSupported(f"{cls.__name__} computes attention in code of its own, without the paged cache")
    return cls


def kv_shapes(config: PretrainedConfig) -> tuple[KVShape, ...]:
    """Keys and values of every layer, as the configuration says it; `load` holds the model to it.

    Raises:
        NotSupported: the configuration does not say it in a way that is known here.
    """
    text = config.get_text_config(decoder=True)
    try:
        return tuple(_layer_shape(layer) for layer in _layer_configs(text))
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise NotSupported(f"{text.model_type} does not say how wide its keys are: {error}") from error


def has_alibi(config: PretrainedConfig) -> bool:
    """Whether scores grow linearly with the position of the key."""
    return config.model_type in ("bloom", "mpt") or (config.model_type == "falcon" and config.alibi)


def reference_attention(config: PretrainedConfig) -> str:
    """The attention of transformers that the paged one is compared with.

    Falcon's eager attention adds linear position biases twice: to the mask and to the scores.
    """
    return "sdpa" if config.model_type == "falcon" else "eager"


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """Refuse lengths from which on a token's computation depends on the other tokens of its step.

    A request's tokens would then depend on its neighbours, and cached keys would not fit later ones.

    Raises:
        NotSupported: `max_length` is beyond that point.
    """
    text: Any = config.get_text_config(decoder=True)
    for reason, limit in _limits(text):
        if max_length > limit:
            raise NotSupported(
                f"{text.model_type} with {reason} cannot share steps beyond {limit} tokens of context; "
                f"max_length is {max_length}, allowed: up to {limit}"
            )


def _limits(config: Any) -> Iterable[tuple[str, int]]:
    """What depends on the longest sequence or on the order of tokens in a step, and from what length on."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        kind = str(parameters.get("rope_type"))
        if "dynamic" in kind:
            yield f"rope type {kind!r}", config.max_position_embeddings
        if kind == "longrope":
            yield f"rope type {kind!r}", parameters["original_max_position_embeddings"]
    if getattr(config, "attn_temperature_tuning", False):
        yield "attn_temperature_tuning", config.floor_scale


def _layer_configs(config: Any) -> Iterable[Any]:
    """One configuration per layer; they differ where attributes of the model are said per layer."""
    if getattr(config, "is_heterogeneous", False):
        layers: Iterable[Any] = config.per_layer_config
        return layers
    return [config] * int(config.num_hidden_layers)


def _layer_shape(config: Any) -> KVShape:
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None) is not None:
        return KVShape(heads, config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        kv_heads = 1
    else:
        kv_heads = (
            getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
        )
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(kv_heads, dim + (ALIBI_DIMS if has_alibi(config) else 0), dim)


def _quantisation(config: PretrainedConfig) -> str:
    said: Any = config.quantization_config
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return str(method or "an unnamed method")
