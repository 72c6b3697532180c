"""The table of decoder families: how each differs from the first one, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..kernels.interface import Activation

Flag = bool | str
"""A constant, or the name of the configuration's attribute that holds it."""


@dataclass(frozen=True, slots=True)
class NormNames:
    """Names of a layer's norms in the checkpoint, by where they stand; None: there is no such norm."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """What sets a family apart. The defaults are Llama's.

    A name ending in `_from` is that of the configuration's attribute to take the number from; where it is
    None, or the attribute is, the number is the neutral one.
    """

    norms: NormNames = NormNames()
    norm_offset: float = 0.0
    """Added to every norm weight."""
    qk_norm: str | None = None
    """"head": queries and keys are normalised per head; "projection": over all heads at once."""
    qkv_bias: Flag = False
    output_bias: Flag = False
    mlp_bias: Flag = False
    fused_qkv: bool = False
    """The checkpoint holds `qkv_proj` instead of three tensors."""
    fused_gate_up: bool = False
    """The checkpoint holds `gate_up_proj` instead of two tensors."""
    neighbour_rope: bool = False
    """Rotary embedding turns neighbouring elements with each other, not the two halves of a head."""
    rope_on: str = "all"
    """Layers with rotary embedding: "all", "no_rope_layers" (where that list is not 0), or "windowed" (those
    with a window, if any layer has one)."""
    windows: str = "none"
    """Layers with the sliding window: "none", "all", or "layer_types" (where that list says so)."""
    activation_from: str = "hidden_act"
    scale_from: str | None = None
    """The attention scale itself."""
    scale_dim_from: str | None = None
    """A number whose -1/2 power is the attention scale; without either, the head's dimension is taken."""
    embedding_root: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    embedding_scale_from: str | None = None
    residual_scale_from: str | None = None
    logit_divisor_from: str | None = None
    attention_softcap_from: str | None = None
    logit_softcap_from: str | None = None


_POST_NORMS = NormNames(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)
_GEMMA_NORMS = NormNames(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_LLAMA = Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias")
_OLMO2 = Family(
    norms=_POST_NORMS, qk_norm="projection", qkv_bias="attention_bias", output_bias="attention_bias"
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "cwm": Family(windows="layer_types"),
        "ernie4_5": Family(
            qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias", neighbour_rope=True
        ),
        "exaone4": Family(norms=_POST_NORMS, qk_norm="head", rope_on="windowed", windows="layer_types"),
        "gemma": Family(
            norm_offset=1.0, qkv_bias="attention_bias", output_bias="attention_bias", embedding_root=True
        ),
        "gemma2": Family(
            norms=_GEMMA_NORMS,
            norm_offset=1.0,
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            windows="layer_types",
            activation_from="hidden_activation",
            scale_dim_from="query_pre_attn_scalar",
            embedding_root=True,
            attention_softcap_from="attn_logit_softcapping",
            logit_softcap_from="final_logit_softcapping",
        ),
        "gemma3_text": Family(
            norms=_GEMMA_NORMS,
            norm_offset=1.0,
            qk_norm="head",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            windows="layer_types",
            activation_from="hidden_activation",
            scale_dim_from="query_pre_attn_scalar",
            embedding_root=True,
            attention_softcap_from="attn_logit_softcapping",
            logit_softcap_from="final_logit_softcapping",
        ),
        "glm": Family(qkv_bias="attention_bias", fused_gate_up=True, neighbour_rope=True),
        "glm4": Family(
            norms=NormNames(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"),
            qkv_bias="attention_bias",
            fused_gate_up=True,
            neighbour_rope=True,
        ),
        "granite": Family(
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
            scale_from="attention_multiplier",
            embedding_scale_from="embedding_multiplier",
            residual_scale_from="residual_multiplier",
            logit_divisor_from="logits_scaling",
        ),
        "helium": Family(qkv_bias="attention_bias", mlp_bias="mlp_bias", neighbour_rope=True),
        "llama": _LLAMA,
        "ministral": Family(windows="layer_types"),
        "mistral": Family(windows="all"),
        "olmo2": _OLMO2,
        "olmo3": Family(
            norms=_POST_NORMS,
            qk_norm="projection",
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            windows="layer_types",
        ),
        "phi3": Family(fused_qkv=True, fused_gate_up=True, windows="all"),
        "qwen2": Family(qkv_bias=True, windows="layer_types"),
        "qwen3": Family(
            qk_norm="head", qkv_bias="attention_bias", output_bias="attention_bias", windows="layer_types"
        ),
        "seed_oss": Family(qkv_bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
        "smollm3": Family(
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
            rope_on="no_rope_layers",
            windows="layer_types",
        ),
    }
)
"""By `model_type`. SmolLM and many others are of type llama."""

TEXT_PART_OF = frozenset({"gemma3", "mistral3"})
"""Types of models with eyes, whose `text_config` is a family of its own and whose text part runs alone."""

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": Activation.SILU,
        "swish": Activation.SILU,
        "gelu": Activation.GELU,
        "gelu_new": Activation.GELU_TANH,
        "gelu_pytorch_tanh": Activation.GELU_TANH,
    }
)
"""By the names that configurations use."""
