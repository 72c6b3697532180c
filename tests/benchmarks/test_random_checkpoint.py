"""Random checkpoints: true numbers, files that other tools read, and the same bytes every time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import STANDARD_DEVIATION, write_checkpoint
from millstream.benchmarks.shapes import main
from millstream.errors import InvalidArgument

TINY = SHAPES["tiny"]

PUBLISHED_PARAMETERS = {
    "smollm-135m": 134_515_008,
    "smollm-360m": 361_821_120,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "llama-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "phi3-mini": 3_821_079_552,
    "gemma2-2b": 2_614_341_888,
    "gemma3-1b": 999_885_952,
}
"""As the models' pages say."""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    return found


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "tiny"])
def test_a_shape_has_the_published_number_of_parameters(shape: str) -> None:
    assert SHAPES[shape].num_parameters == PUBLISHED_PARAMETERS[shape]


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_tensors_are_as_described(tmp_path: Path, dtype: str, stored: torch.dtype) -> None:
    write_checkpoint(tmp_path, TINY, dtype=dtype)
    found = tensors(tmp_path)
    expected = {tensor.name: tensor for tensor in TINY.tensors()}
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tuple(tensor.shape) == expected[name].shape
        assert tensor.dtype is stored
    assert torch.all(found["model.norm.weight"] == 1)
    embedding = found["model.embed_tokens.weight"].float()
    assert embedding.std().item() == pytest.approx(STANDARD_DEVIATION, rel=0.01)
    assert abs(embedding.mean().item()) < STANDARD_DEVIATION / 50
    assert not torch.equal(embedding, found["lm_head.weight"].float())


def test_all_dtypes_hold_the_same_numbers(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        write_checkpoint(tmp_path / dtype, TINY, dtype=dtype)
    exact, rounded = tensors(tmp_path / "float32"), tensors(tmp_path / "bfloat16")
    for name, tensor in exact.items():
        assert torch.equal(tensor.to(torch.bfloat16), rounded[name])


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_checkpoint(tmp_path / name, TINY, seed=seed)
    first, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == same
    assert first != other


def test_shards_hold_what_one_file_would(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", TINY)
    write_checkpoint(tmp_path / "many", TINY, max_shard_bytes=400_000)
    names = [file.name for file in sorted((tmp_path / "many").glob("*.safetensors"))]
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * TINY.num_parameters
    whole, parts = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert set(index["weight_map"]) == whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_every_id_has_a_text_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab_size
    added = [tokenizer.decode([token]) for token in range(4096, TINY.vocab_size)]
    assert len(set(added)) == len(added)
    assert all(added)
    text = "Grüße, 世界! print('x')"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_there_are_words_enough_for_the_largest_vocabulary() -> None:
    from millstream.benchmarks.random_checkpoint import _words

    largest = max(shape.vocab_size for shape in SHAPES.values())
    assert sum(1 for _ in zip(range(largest), _words({}), strict=False)) == largest


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="new or an empty folder"):
        write_checkpoint(tmp_path, TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="bytes free"):
        write_checkpoint(tmp_path, replace(TINY, vocab_size=10**15))
    assert not any(tmp_path.iterdir())


def test_wrong_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="dtype"):
        write_checkpoint(tmp_path / "new", TINY, dtype="int3")
    with pytest.raises(InvalidArgument, match="seed"):
        write_checkpoint(tmp_path / "new", TINY, seed=-1)
    with pytest.raises(InvalidArgument, match="vocab_size"):
        write_checkpoint(tmp_path / "small", replace(TINY, vocab_size=100))
    assert not any(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "qwen2-0.5b" in capsys.readouterr().out
    assert main(["--shape", "tiny", "--dtype", "float16", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    assert main(["--shape", "tiny", str(tmp_path / "out")]) == 2
    assert main(["--shape", "tiny"]) == 2
    assert main(["--shape", "huge", str(tmp_path)]) == 2
