"""Adapters (LoRA) that are written here: folders as PEFT writes them, with what they add."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LINEAR = re.compile(r".*\.(q|k|v|o|qkv|gate|up|down|gate_up)_proj\.weight")


def save_peft(
    folder: Path, shapes: dict[str, tuple[int, ...]], rank: int = 4, seed: int = 0, **said: Any
) -> dict[str, Tensor]:
    """Write a random adapter for the matrices `shapes`; gives what it adds to each.

    `said` are further settings of PEFT.
    """
    folder.mkdir()
    random = torch.Generator().manual_seed(seed)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", "use_dora": False, **said}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    alpha_of_all = settings["lora_alpha"] if isinstance(settings["lora_alpha"], int) else 0
    tensors: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for number, (name, (outputs, inputs)) in enumerate(shapes.items()):
        own = rank + number % 2 if "rank_pattern" in said else rank
        down = torch.randn(own, inputs, generator=random) / inputs**0.5
        up = torch.randn(outputs, own, generator=random) * 0.2
        module = name.removesuffix(".weight")
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        alphas = said.get("alpha_pattern", {})
        alpha = next((alphas[key] for key in alphas if module.endswith(key)), alpha_of_all)
        added[name] = alpha / (own**0.5 if said.get("use_rslora") else own) * up @ down
    save_file(tensors, folder / "adapter_model.safetensors")
    return added


def linear_shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Of all matrices in the layers of transformers' module."""
    return {name: tuple(w.shape) for name, w in module.state_dict().items() if LINEAR.fullmatch(name)}


def merge(module: Any, added: dict[str, Tensor], scale: float = 1.0) -> None:
    """Add it to the weights of transformers' module."""
    weights = module.state_dict()
    with torch.no_grad():
        for name, delta in added.items():
            weights[name] += scale * delta
