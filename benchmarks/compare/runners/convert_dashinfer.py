"""Converts a checkpoint to DashInfer 1.3's format, in fp32, its type on a CPU: `CHECKPOINT OUT_DIR`."""

import sys
from pathlib import Path

import torch
from dashinfer import allspark
from transformers import AutoModelForCausalLM

from .dashinfer import MODEL_NAME

_MODEL_TYPES = {"qwen2": "Qwen_v20", "llama": "LLaMA_v3"}
"""A checkpoint's model_type -> DashInfer's."""


def main() -> int:
    """Write the graph and the weights."""
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32)
    config = model.config.to_dict()
    config |= {
        "use_dynamic_ntk": False,
        "use_logn_attn": False,
        "rotary_emb_base": config["rope_theta"],
        "size_per_head": config["hidden_size"] // config["num_attention_heads"],
    }
    out.mkdir(parents=True, exist_ok=True)
    allspark.Engine().serialize_model_from_torch(
        model_name=MODEL_NAME,
        model_type=_MODEL_TYPES[config["model_type"]],
        torch_model=model.state_dict(),
        model_config=config,
        save_dir=str(out),
        multinode_mode=False,
        data_type="float32",
        rotary_base=config["rope_theta"],
    )
    return 0
