"""Weights: what is refused, what it costs, and that nothing else is read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from millstream.backends.torch.decoder.config import decoder_config, read_config
from millstream.backends.torch.decoder.decoder import weight_bytes
from millstream.backends.torch.decoder.weights import DecoderWeights, LayerWeights, count_parameters
from millstream.backends.torch.files.checkpoint import Checkpoint
from millstream.errors import ModelFormatError

from ..checkpoints import greedy, make_model, save_checkpoint
from ..driver import Driver, native_worker

CPU = torch.device("cpu")
PROMPT = [5, 17, 99, 4]


@dataclass(frozen=True)
class Loaded:
    """Everything that DecoderWeights gives."""

    embedding: Tensor
    head: Tensor
    final_norm: Tensor
    layers: list[LayerWeights]


def _load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    buffer_bytes: int = 1 << 20,
    keep_float32: bool = False,
) -> tuple[Loaded, list[float]]:
    shares: list[float] = []
    config = decoder_config(read_config(folder), 64)
    weights = DecoderWeights(
        folder,
        config,
        dtype,
        CPU,
        shares.append,
        keep_float32=keep_float32,
        buffer_bytes=buffer_bytes,
    )
    embedding = weights.embedding()
    head = embedding if config.tied_head else weights.head()
    return Loaded(embedding, head, weights.final_norm(), list(weights.layers())), shares


def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_missing_weight_file(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match="has neither"):
        _load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="convert them to safetensors"):
        _load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFormatError, match=r"model\.safetensors is truncated or damaged"):
        _load(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[1]",
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]}}',
    ],
)
def test_a_damaged_header(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelFormatError, match="truncated or damaged"):
        Checkpoint(tmp_path)


def test_a_missing_tensor(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    tensors = _tensors(tmp_path)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight is missing"):
        _load(tmp_path)


def test_a_tensor_of_the_wrong_shape(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    tensors = _tensors(tmp_path)
    tensors["model.norm.weight"] = torch.ones(47)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"model\.norm\.weight .* has shape \[47\].* asks for \[48\]"):
        _load(tmp_path)


def test_a_tensor_of_integers(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    tensors = _tensors(tmp_path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelFormatError, match=r"lm_head\.weight .* is of type I8; allowed: BF16"):
        _load(tmp_path)


def test_shards(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert Driver(native_worker(tmp_path)).run([PROMPT], 4) == [greedy(model, PROMPT, 4)]
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelFormatError, match=f"{shard.name} is missing"):
        _load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    with pytest.raises(ModelFormatError, match="is not an index"):
        _load(tmp_path)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
def test_other_prefixes(prefix: str, tmp_path: Path) -> None:
    model = save_checkpoint("glm", tmp_path)
    head = "language_model.lm_head" if prefix.startswith("language_model") else "lm_head"
    renamed = {
        name.replace("model.", prefix, 1) if name.startswith("model.") else name.replace("lm_head", head): t
        for name, t in _tensors(tmp_path).items()
    }
    save_file({**renamed, "vision_tower.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert Driver(native_worker(tmp_path)).run([PROMPT], 4) == [greedy(model, PROMPT, 4)]


@pytest.mark.parametrize("family", ["llama-bias", "qwen2", "qwen3", "phi3", "gemma3", "olmo2", "glm"])
def test_counts_are_known_before_reading(family: str, tmp_path: Path) -> None:
    model = save_checkpoint(family, tmp_path)
    config = decoder_config(read_config(tmp_path), 64)
    assert count_parameters(config) == model.num_parameters()
    loaded, shares = _load(tmp_path)
    assert weight_bytes(config, torch.float32, CPU, "none") == sum(t.nbytes for t in _all(loaded))
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


def _all(loaded: Loaded) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    for t in (loaded.embedding, loaded.head, loaded.final_norm):
        found[t.data_ptr()] = t
    for layer in loaded.layers:
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            found[linear.weight.data_ptr()] = linear.weight
            if linear.bias is not None:
                found[linear.bias.data_ptr()] = linear.bias
        norms = (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp)
        for norm in (*norms, layer.query_norm, layer.key_norm):
            if norm is not None:
                found[norm.data_ptr()] = norm
    return list(found.values())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_converted(stored: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    tensors = {name: tensor.to(stored) for name, tensor in _tensors(tmp_path).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded, _ = _load(tmp_path)
    assert torch.equal(loaded.head, tensors["lm_head.weight"].float())


def test_reading_in_small_pieces(tmp_path: Path) -> None:
    save_checkpoint("glm", tmp_path)
    whole, _ = _load(tmp_path)
    pieces, shares = _load(tmp_path, buffer_bytes=1000)
    assert len(shares) > 100
    assert all(torch.equal(a, b) for a, b in zip(_all(whole), _all(pieces), strict=True))
