"""Tiny random encoders of many families, made with transformers, and what they give by themselves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, PreTrainedModel

from millstream.scheduler.batch import Pooling

VOCAB = 96
HIDDEN = 48
LENGTH = 64
"""Longest sequence of each of them."""
_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "type_vocab_size": 1,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
)
_SHIFTED = {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1}
ENCODERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "albert": {"embedding_size": 24},
        "bert": {},
        "camembert": _SHIFTED,
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
        "distilbert": {"dim": HIDDEN, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
        "electra": {"embedding_size": 24},
        "eurobert": {"num_key_value_heads": 4, "head_dim": 12, "mask_token_id": 4},
        "modernbert": {
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
        "mpnet": _SHIFTED,
        "nomic_bert": {},
        "roberta": _SHIFTED,
        "xlm-roberta": _SHIFTED,
    }
)
"""Keyword arguments of the configuration by model type; what is not said is from _COMMON."""


def save_encoder(kind: str, folder: Path, auto_class: Any = AutoModel, **changes: Any) -> PreTrainedModel:
    """Save a random float32 model whose weights are spread widely enough for tokens to matter."""
    config = AutoConfig.for_model(kind, **{**_COMMON, **ENCODERS.get(kind, {}), **changes})
    torch.manual_seed(5)
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name.lower() and parameter.dim() == 1 and "bias" not in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        else:
            spread = parameter.shape[-1] if parameter.dim() > 1 else 9
            torch.nn.init.normal_(parameter, 0.0, 1 / spread**0.5)
    model.train(False)
    model.save_pretrained(folder)
    return model


def hidden_states(model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """[n, hidden] by the model's own pass over one sequence, with its mask."""
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        states: Any = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    found: NDArray[np.float32] = states[0].numpy()
    return found


def pooled(states: NDArray[np.float32], pooling: Pooling) -> NDArray[np.float32]:
    """One vector of hidden states."""
    found: NDArray[np.float32] = {
        Pooling.MEAN: states.mean(0),
        Pooling.CLS: states[0],
        Pooling.LAST: states[-1],
    }[pooling]
    return found


def write_modules(
    folder: Path, *kinds: str, pooling: Mapping[str, Any] | None = None, max_length: int | None = None
) -> None:
    """Make a sentence-transformers folder of a checkpoint: the kinds of module behind the model."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, kind in enumerate(kinds, 1):
        path = f"{i}_{kind}"
        modules.append(
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir()
        if kind == "Pooling":
            said = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
            (folder / path / "config.json").write_text(json.dumps(said))
    (folder / "modules.json").write_text(json.dumps(modules))
    if max_length is not None:
        file = folder / "sentence_bert_config.json"
        file.write_text(json.dumps({"max_seq_length": max_length, "do_lower_case": False}))


def write_dense(
    folder: Path, inputs: int, outputs: int, *, bias: bool = True, activation: str = "Tanh", **changes: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense module's files; its weight and bias."""
    folder.mkdir(exist_ok=True)
    said = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": f"torch.nn.modules.activation.{activation}",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(said))
    torch.manual_seed(inputs + outputs)
    weight, shift = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    tensors = {"linear.weight": weight, "linear.bias": shift} if bias else {"linear.weight": weight}
    save_file(tensors, folder / "model.safetensors")
    return weight, shift if bias else torch.zeros(outputs)
