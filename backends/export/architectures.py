"""The table of llama.cpp architectures that checkpoints are exported to: what each one computes, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..torch.kernels.interface import Activation


@dataclass(frozen=True, slots=True)
class Architecture:
    """How llama.cpp runs one of its architectures. The defaults are those of "llama".

    What a checkpoint has beyond this cannot be exported: llama.cpp would refuse the file or, worse, run it
    and compute something else.
    """

    name: str
    activation: Activation = Activation.SILU
    neighbour_rope: bool = True
    """Rotary embedding turns neighbouring elements with each other, not the two halves of a head."""
    rope_factors: bool = False
    """Layers read a divisor for each rotary frequency from the file."""
    rope_skips: int | None = None
    """Every so many layers one has no rotary embedding; None: all have it."""
    windows: bool = False
    """Reads a sliding window and the layers that have it."""
    square_attention: bool = False
    """All heads together are as wide as the hidden state."""
    output_bias: bool = False
    mlp_bias: bool = False
    head: str = "optional"
    """"optional": a missing head is the embedding; "never": files have none; "always": they have one."""
    embedding_root: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    multipliers: bool = False
    """Reads the scale of attention, embeddings, residuals and logits."""
    narrow_scale_layers: int | None = None
    """With so many layers attention is scaled by (hidden size / heads) ^ -1/2, not by the head's size."""
    attention_softcap: bool = False
    """Scores have a soft cap, always."""
    logit_softcap: bool = False
    """Reads a soft cap of the logits."""
    mlp_norm: str = "ffn_norm"
    """Name of the norm before the MLP."""


_LLAMA = Architecture("llama", rope_factors=True, output_bias=True, mlp_bias=True)
_OLMO2 = Architecture("olmo2", neighbour_rope=False, windows=True, square_attention=True, head="always")

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "cwm": _LLAMA,
        "ernie4_5": Architecture("ernie4_5", output_bias=True),
        "exaone4": Architecture("exaone4", neighbour_rope=False, rope_factors=True, square_attention=True),
        "gemma": Architecture(
            "gemma",
            activation=Activation.GELU_TANH,
            neighbour_rope=False,
            head="never",
            embedding_root=True,
        ),
        "gemma2": Architecture(
            "gemma2",
            activation=Activation.GELU_TANH,
            neighbour_rope=False,
            windows=True,
            head="never",
            embedding_root=True,
            narrow_scale_layers=46,
            attention_softcap=True,
            logit_softcap=True,
        ),
        "gemma3_text": Architecture(
            "gemma3",
            activation=Activation.GELU_TANH,
            neighbour_rope=False,
            windows=True,
            embedding_root=True,
            narrow_scale_layers=62,
            logit_softcap=True,
        ),
        "glm4": Architecture("glm4"),
        "granite": Architecture(
            "granite", rope_factors=True, output_bias=True, mlp_bias=True, multipliers=True
        ),
        "llama": _LLAMA,
        "ministral": _LLAMA,
        "mistral": _LLAMA,
        "olmo2": _OLMO2,
        "olmo3": _OLMO2,
        "phi3": Architecture("phi3", neighbour_rope=False, rope_factors=True, square_attention=True),
        "qwen2": Architecture("qwen2", neighbour_rope=False, square_attention=True),
        "qwen3": Architecture("qwen3", neighbour_rope=False),
        "seed_oss": Architecture("seed_oss", neighbour_rope=False, mlp_norm="post_attention_norm"),
        "smollm3": Architecture("smollm3", rope_skips=4),
    }
)
"""By `model_type` of the checkpoint."""
