"""Tiny random checkpoints of every native family, made with transformers and saved as safetensors."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 128
COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
)
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {"model_type": "llama"},
        "llama-mha": {"model_type": "llama", "num_key_value_heads": 6},
        "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        "llama3-rope": {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        "llama-linear": {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        "qwen2-yarn": {
            "model_type": "qwen2",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "mistral": {"model_type": "mistral", "sliding_window": 11},
        "ministral": {"model_type": "ministral", "sliding_window": 11, "layer_types": _ALTERNATING},
        "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
        "qwen2-windows": {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
        },
        "qwen3": {"model_type": "qwen3", "head_dim": 16},
        "phi3": {"model_type": "phi3", "sliding_window": 13},
        "phi3-partial": {
            "model_type": "phi3",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        "gemma": {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
        "gemma2": {
            "model_type": "gemma2",
            "sliding_window": 10,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 9.0,
            "tie_word_embeddings": True,
        },
        "gemma3": {
            "model_type": "gemma3_text",
            "sliding_window": 10,
            "layer_types": _ALTERNATING,
            "query_pre_attn_scalar": 12,
            "tie_word_embeddings": True,
        },
        "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0, 1]},
        "granite": {
            "model_type": "granite",
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
        "olmo2": {"model_type": "olmo2"},
        "olmo3": {"model_type": "olmo3", "sliding_window": 10, "layer_types": _ALTERNATING},
        "exaone4": {"model_type": "exaone4", "sliding_window": 10, "layer_types": _ALTERNATING},
        "cwm": {"model_type": "cwm", "sliding_window": 10, "layer_types": _ALTERNATING},
        "glm": {"model_type": "glm", "attention_bias": True},
        "glm4": {"model_type": "glm4", "attention_bias": True},
        "ernie4_5": {"model_type": "ernie4_5", "use_bias": True},
        "helium": {"model_type": "helium"},
        "seed_oss": {"model_type": "seed_oss", "attention_bias": True},
    }
)
"""Keyword arguments of the configuration by a name for the case; what is not said is from COMMON."""


def make_model(family: str, seed: int = 2, **changes: Any) -> PreTrainedModel:
    """A random float32 model whose weights are spread widely enough for greedy tokens to vary."""
    values = {**COMMON, **FAMILIES[family], **changes}
    config = AutoConfig.for_model(**values)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="eager", dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 0.0 if "gemma" in config.model_type else 1.0, 0.3)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        else:
            # Small embeddings: a tied head would else see little but the last token in the residual stream.
            spread = 0.2 if "embed" in name and config.tie_word_embeddings else 1.5
            torch.nn.init.normal_(parameter, 0.0, spread / parameter.shape[1] ** 0.5)
    model.train(False)
    return model


def save_checkpoint(family: str, folder: Path, seed: int = 2, **changes: Any) -> PreTrainedModel:
    """Save `make_model(...)` to `folder`, and give it back as the reference."""
    model = make_model(family, seed, **changes)
    model.save_pretrained(folder, safe_serialization=True)
    return model


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The reference's own next `count` tokens, end-of-sequence ignored."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        generate: Any = model.generate
        found = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = found[0, len(prompt) :].tolist()
    return tokens
