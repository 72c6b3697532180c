"""Writes a checkpoint of random weights in the Hugging Face layout, a few megabytes at a time."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..backends.bundled import PYHELP
from ..errors import InvalidArgument
from .architectures import Architecture, Json, Tensor

DTYPES = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
"""dtype -> its name in a safetensors header, and bytes per element."""

STANDARD_DEVIATION = 0.02
_CHUNK = 1 << 22
"""Elements made at a time."""
_TEMPLATE = "chat_template.jinja"


def write_checkpoint(
    folder: Path,
    architecture: Architecture,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    max_shard_bytes: int = 4 << 30,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Write weights, tokenizer and configuration into `folder`, which may exist if it is empty.

    The same architecture, dtype and seed give the same bytes. config.json comes last, so that a folder
    whose writing was interrupted is not taken for a model. `progress` is told shares from 0 to 1.

    Raises:
        InvalidArgument: the folder holds something, the dtype is unknown, the vocabulary is smaller than the
            tokenizer's, or the disk lacks the space.
    """
    if dtype not in DTYPES:
        raise InvalidArgument("dtype", dtype, f"one of {', '.join(DTYPES)}")
    if not 0 <= seed < 1 << 63:
        raise InvalidArgument("seed", seed, "0 to 2**63 - 1")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgument("folder", str(folder), "a new or an empty folder")
    vocab = _read_tokenizer()["model"]["vocab"]
    if architecture.vocab_size < len(vocab):
        raise InvalidArgument("vocab_size", architecture.vocab_size, f"at least {len(vocab)}")
    folder.mkdir(parents=True, exist_ok=True)
    needed = architecture.num_parameters * DTYPES[dtype][1]
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidArgument("folder", str(folder), f"a disk with {needed:,} bytes free (it has {free:,})")
    _write_weights(folder, architecture, dtype, seed, max_shard_bytes, progress)
    _write_tokenizer(folder, architecture.vocab_size)
    _write_json(folder / "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    ids: dict[str, Json] = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    _write_json(folder / "config.json", {**architecture.config(dtype), **ids})


def _write_weights(
    folder: Path,
    architecture: Architecture,
    dtype: str,
    seed: int,
    max_shard_bytes: int,
    progress: Callable[[float], None],
) -> None:
    shards = list(_shards(architecture.tensors(), max_shard_bytes // DTYPES[dtype][1]))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    total, done = architecture.num_parameters, 0
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_header(file, shard, dtype)
            for tensor in shard:
                for chunk in _values(tensor, dtype, seed):
                    chunk.tofile(file)
                    done += chunk.size
                    progress(done / total)
    if len(shards) > 1:
        files: dict[str, Json] = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        size = total * DTYPES[dtype][1]
        index: dict[str, Json] = {"metadata": {"total_size": size}, "weight_map": files}
        _write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: Iterator[Tensor], max_elements: int) -> Iterator[list[Tensor]]:
    """Tensors in files of at most `max_elements`, or of one larger tensor."""
    shard: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.size > max_elements:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.size
    yield shard


def _write_header(file: BinaryIO, tensors: Sequence[Tensor], dtype: str) -> None:
    """The safetensors header: its length as u64, then JSON padded with blanks to a multiple of 8."""
    label, width = DTYPES[dtype]
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size * width
        header[tensor.name] = {"dtype": label, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _values(tensor: Tensor, dtype: str, seed: int) -> Iterator[NDArray[np.generic]]:
    """The elements of a tensor in chunks; a random one depends on its name and the seed alone."""
    sizes = [min(_CHUNK, tensor.size - first) for first in range(0, tensor.size, _CHUNK)]
    if tensor.constant is not None:
        for size in sizes:
            yield _encode(np.full(size, tensor.constant, dtype=np.float32), dtype)
        return
    # Raw bits are the part of numpy's generators that never changes between its versions.
    bits = np.random.PCG64(np.random.SeedSequence([seed, crc32(tensor.name.encode())]))
    table = _normal_table(dtype)
    for size in sizes:
        yield table[bits.random_raw(-(-size // 4)).view(np.uint16)[:size]]


@cache
def _normal_table(dtype: str) -> NDArray[np.generic]:
    """[65536] quantiles of the normal distribution: 16 random bits are looked up to one normal value."""
    normal = NormalDist(sigma=STANDARD_DEVIATION)
    quantiles = np.array([normal.inv_cdf((bits + 0.5) / 65536) for bits in range(65536)], dtype=np.float32)
    return _encode(quantiles, dtype)


def _encode(values: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """float32 to the stored form; bfloat16 is its upper half, rounded to nearest, ties to even."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """The bundled model's byte-level tokenizer, filled up with made-up words so that every id has text."""
    tokenizer = _read_tokenizer()
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    words = _words(vocab)
    for token_id in range(len(vocab), vocab_size):
        vocab[next(words)] = token_id
    _write_json(folder / "tokenizer.json", tokenizer)
    for name in ("tokenizer_config.json", _TEMPLATE):
        shutil.copyfile(PYHELP / name, folder / name)


def _read_tokenizer() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PYHELP / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def _words(taken: dict[str, int]) -> Iterator[str]:
    """Words that are not taken, with a blank before them as byte-level tokenizers write it."""
    syllables = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]
    for first in syllables:
        for second in syllables:
            for third in syllables:
                word = f"Ġ{first}{second}{third}"
                if word not in taken:
                    yield word


def _write_json(path: Path, content: dict[str, Json]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
