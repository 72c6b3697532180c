"""transformers loads every family of random checkpoint without a missing or an unexpected tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import write_checkpoint

FAMILIES = ("llama-1b", "mistral-7b", "qwen2-0.5b", "qwen3-0.6b", "phi3-mini", "gemma2-2b", "gemma3-1b")


@pytest.mark.parametrize("shape", FAMILIES)
def test_a_small_one_of_the_family(shape: str, tmp_path: Path) -> None:
    small = replace(
        SHAPES[shape],
        vocab_size=4352,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4 if SHAPES[shape].fused_projections else 2,
        head_dim=8,
    )
    write_checkpoint(tmp_path, small, dtype="float32")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert model.num_parameters() == small.num_parameters
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
