"""Small GGUF files that are written here: encoders as transformers has them, and files with one key more."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter, TokenType
from transformers import BertConfig, BertModel

WORDS = [
    *("the", "quick", "brown", "fox", "jump", "over", "lazy", "dog", "we", "see", "don", "and", "other"),
    *("thing", "hello", "world", "t", "'", ",", ".", "!", "1", "2", "3"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["ed", "ing", *"abcdefghijklmnopqrstuvwxyz"]
LENGTH = 96
_PARTS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}


def vocabulary() -> list[str]:
    """Of a WordPiece tokenizer, as its authors write it: what goes on with a word begins with ##."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [*SPECIAL, *WORDS, *(letter for letter in letters if letter not in WORDS)]
    return [*words, *(f"##{piece}" for piece in PIECES)]


def save_bert(path: Path, pooling: int | None = 1, **said: Any) -> BertModel:
    """Write a random encoder to `path`; gives transformers' module.

    Its activation is the form of GELU that llama.cpp computes. `said` are more keys of whole numbers.
    """
    torch.manual_seed(4)
    tokens = vocabulary()
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
        hidden_act="gelu_pytorch_tanh",
        initializer_range=0.3,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    writer = GGUFWriter(path, "bert")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    for key, value in said.items():
        writer.add_uint32(key, value)
    _write_word_pieces(writer, tokens)
    for name, tensor in model.state_dict().items():
        if (target := _target(name)) is not None:
            writer.add_tensor(target, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _target(name: str) -> str | None:
    stem, _, kind = name.rpartition(".")
    group, _, rest = stem.partition(".")
    if group == "embeddings":
        return f"{_EMBEDDINGS[rest]}.{kind}" if rest in _EMBEDDINGS else None
    layer, _, part = rest.removeprefix("layer.").partition(".")
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def _write_word_pieces(writer: GGUFWriter, tokens: list[str]) -> None:
    """GGUF files mark the beginning of a word, not its going on."""
    marked = [
        token if token in SPECIAL else token.removeprefix("##") if token[:2] == "##" else f"\u2581{token}"
        for token in tokens
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(marked)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)


def with_key(source: Path, target: Path, key: str, value: int | bool) -> Path:
    """A copy of a GGUF file that says one whole number or truth value more."""
    reader = GGUFReader(source)
    data = source.read_bytes()
    form, kind = (
        ("<I?", gguf.GGUFValueType.BOOL) if isinstance(value, bool) else ("<II", gguf.GGUFValueType.UINT32)
    )
    added = _string(key) + struct.pack(form, kind, value)
    name = _string("test.padding") + struct.pack("<I", gguf.GGUFValueType.STRING)
    # What is added is a multiple of the alignment, so that the tensors stay where they are expected.
    added += name + _string("x" * (-(len(added) + len(name) + 8) % reader.alignment))
    count = struct.unpack_from("<Q", data, 16)[0] + 2
    target.write_bytes(data[:16] + struct.pack("<Q", count) + added + data[24:])
    return target


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def hidden_states(model: Any, tokens: list[int]) -> np.ndarray:
    """[tokens, size] after the last layer and norm, of transformers' module."""
    with torch.inference_mode():
        found = (model.model if hasattr(model, "model") else model)(torch.tensor([tokens]))
    return found.last_hidden_state[0].double().numpy()
