"""Checkpoint: the safetensors files of a model, read a few rows of one tensor at a time.

A safetensors file is the length of a JSON header (8 bytes, little-endian), the header, and the tensors'
bytes. It is read, not mapped: pages of a mapped file would count as this process's memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import ModelFormatError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_TYPES = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
"""Element types that weights are read from, by the names in the files."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    begin: int
    """Offset of its first byte in the file."""
    num_bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TensorReader:
    """Reads tensors of one open file through a buffer that every read uses again."""

    def __init__(self, file: BufferedReader, buffer_bytes: int) -> None:
        self._file = file
        self._buffer = np.empty(buffer_bytes, dtype=np.uint8)

    def pieces(self, header: TensorHeader) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor of one of FLOAT_TYPES, as many rows at a time as the buffer holds.

        Raises:
            ModelFormatError: the file has become shorter, or one row is larger than the buffer.
        """
        dtype = FLOAT_TYPES[header.dtype]
        row_bytes = header.num_bytes // header.shape[0]
        step = len(self._buffer) // row_bytes
        if not step:
            raise ModelFormatError(f"a row in {header.file} has {row_bytes} bytes")
        for begin in range(0, header.shape[0], step):
            count = min(step, header.shape[0] - begin)
            view = self._buffer[: count * row_bytes]
            self._file.seek(header.begin + begin * row_bytes)
            if self._file.readinto(view.data) != len(view):
                raise ModelFormatError(
                    f"weight file {header.file} is truncated or damaged: it ends too early"
                )
            yield begin, torch.from_numpy(view).view(dtype).view(count, *header.shape[1:])


class Checkpoint:
    """The headers of all weight files in a folder; no weights are read to make it."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            ModelFormatError: a file is missing or damaged, or the folder has no safetensors file.
        """
        headers: dict[str, TensorHeader] = {}
        for file in _weight_files(folder):
            headers.update(read_headers(file))
        self.headers = MappingProxyType(headers)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelFormatError(f"{index} is not an index of weight files: {error!r}") from error
        return [folder / name for name in sorted(names)]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelFormatError(
            f"{folder} holds its weights only as pickled files (.bin, .pt), which can run code when they are "
            "read; convert them to safetensors"
        )
    raise ModelFormatError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file, by name.

    Raises:
        ModelFormatError: the file is missing or damaged.
    """
    try:
        with file.open("rb") as opened:
            size = file.stat().st_size
            data_begin = 8 + int.from_bytes(opened.read(8), "little")
            if not 8 < data_begin <= size:
                raise ValueError(f"it has {size} bytes")
            entries = json.loads(opened.read(data_begin - 8))
            entries.pop("__metadata__", None)
            return {name: _header(file, entry, data_begin, size) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise ModelFormatError(f"weight file {file} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"weight file {file} is truncated or damaged: {error}") from error


def _header(file: Path, entry: dict[str, Any], data_begin: int, size: int) -> TensorHeader:
    begin, end = (data_begin + int(offset) for offset in entry["data_offsets"])
    header = TensorHeader(file, tuple(map(int, entry["shape"])), str(entry["dtype"]), begin, end - begin)
    if not data_begin <= begin <= end <= size:
        raise ValueError(f"a tensor ends at byte {end}, the file at {size}")
    kind = FLOAT_TYPES.get(header.dtype)
    if kind is not None and header.num_bytes != header.size * kind.itemsize:
        raise ValueError(f"{header.num_bytes} bytes for a tensor {list(header.shape)} of {header.dtype}")
    return header
