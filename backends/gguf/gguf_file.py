"""Reading the headers of GGUF files, and refusing files that llama.cpp would not survive.

The layout is that of the GGUF specification (ggml, docs/gguf.md), versions 2 and 3: magic, version, counts,
key/value pairs, tensor descriptions, padding, tensor data; little-endian. Every count and length is checked
against the bytes that are left in the file before anything is read or allocated by it.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFormatError
from .bounded_reader import SCALARS, BoundedReader, StringArray
from .tensor_types import REMOVED_TYPES, TENSOR_TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_KEY = 256
"""Bytes of a key; the specification allows 65,535, and none in use has a hundred."""
MAX_DIMENSIONS = 4
MAX_TENSOR_NAME = 63
"""Bytes; llama.cpp's names are arrays of 64."""
DEFAULT_ALIGNMENT = 32

_FLOAT32, _STRING, _ARRAY = 6, 8, 9


Value = str | int | float | bool | NDArray[Any] | StringArray


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """The fastest running dimension first."""
    type: TensorType
    offset: int
    """Bytes from the start of the tensor data."""
    num_bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


class GGUFFile:
    """The header of one file, checked against the file's size."""

    def __init__(
        self,
        path: Path,
        version: int,
        metadata: Mapping[str, Value],
        types: Mapping[str, int],
        tensors: tuple[TensorInfo, ...],
    ) -> None:
        """`types` are GGUF's numbers of the types of the values in `metadata`."""
        self.path = path
        self.version = version
        self.metadata = metadata
        self.types = types
        self.tensors = tensors

    def text(self, key: str) -> str | None:
        """The string under `key`; None where there is none."""
        value: str | None = self._scalar(key, str, "a string")
        return value

    def integer(self, key: str) -> int | None:
        """The whole number under `key`; None where there is none."""
        value: int | None = self._scalar(key, int, "a whole number")
        return value

    def number(self, key: str) -> float | None:
        """The number under `key`; None where there is none."""
        value: float | None = self._scalar(key, (int, float), "a number")
        return value

    def flag(self, key: str) -> bool | None:
        """The truth value under `key`; None where there is none."""
        value: bool | None = self._scalar(key, bool, "true or false")
        return value

    def is_float32(self, key: str) -> bool:
        """Whether there is a number of that type under `key`."""
        return self.types.get(key) == _FLOAT32

    def integers(self, key: str, count: int) -> tuple[int, ...] | None:
        """`count` whole numbers: an array's first ones, or one for all; None where there is neither."""
        value = self.metadata.get(key)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "iub" or len(value) < count:
                raise self._wrong(key, f"a whole number, or {count} of them")
            return tuple(int(item) for item in value[:count])
        single = self.integer(key)
        return None if single is None else (single,) * count

    def strings(self, key: str) -> StringArray | None:
        """The array of strings under `key`; None where there is none."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, StringArray):
            raise self._wrong(key, "an array of strings")
        return value

    def _scalar(self, key: str, kind: Any, what: str) -> Any:
        value = self.metadata.get(key)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise self._wrong(key, what)

    def _wrong(self, key: str, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path} is damaged: {key} is not {what}")


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of the file at `path`.

    Raises:
        ModelFormatError: it is no GGUF file, of a version or type that is not known, truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                raise ModelFormatError(_no_magic(path, start))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_file(BoundedReader(path, data))
    except OSError as error:
        raise ModelFormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _no_magic(path: Path, start: bytes) -> str:
    if len(start) < len(MAGIC):
        return f"{path} is no GGUF file: it has only {len(start)} bytes"
    if start == MAGIC[::-1]:
        return f"{path} is a GGUF file for big-endian machines, which cannot be loaded here"
    return f"{path} is no GGUF file: it begins with {start!r} instead of {MAGIC!r}"


def _read_file(reader: BoundedReader) -> GGUFFile:
    reader.take(len(MAGIC), "the magic")
    version = reader.u32("the version")
    if version & 0xFFFF == 0 and version != 0:
        raise ModelFormatError(
            f"{reader.path} is a GGUF file for big-endian machines, which cannot be loaded here"
        )
    if version not in VERSIONS:
        raise ModelFormatError(
            f"{reader.path} is GGUF version {version}; known: {' and '.join(map(str, VERSIONS))}"
        )
    num_tensors, num_pairs = reader.u64("the number of tensors"), reader.u64("the number of keys")
    if num_tensors > MAX_TENSORS:
        raise reader.damaged(f"it announces {num_tensors} tensors, more than {MAX_TENSORS}")
    if num_pairs > MAX_PAIRS:
        raise reader.damaged(f"it announces {num_pairs} keys, more than {MAX_PAIRS}")
    metadata, types = _read_metadata(reader, num_pairs)
    alignment = _alignment(reader, metadata)
    tensors = _read_tensors(reader, num_tensors, alignment)
    return GGUFFile(reader.path, version, MappingProxyType(metadata), MappingProxyType(types), tensors)


def _read_metadata(reader: BoundedReader, count: int) -> tuple[dict[str, Value], dict[str, int]]:
    """Values, and the numbers of their types."""
    metadata: dict[str, Value] = {}
    types: dict[str, int] = {}
    for number in range(count):
        key = reader.string(f"the name of key {number}", MAX_KEY)
        if not key or key in metadata:
            raise reader.damaged(f"key {key!r} is there twice" if key else f"key {number} has no name")
        types[key] = reader.u32(f"key {key!r}")
        metadata[key] = _read_value(reader, key, types[key])
    return metadata, types


def _read_value(reader: BoundedReader, key: str, kind: int) -> Value:
    what = f"key {key!r}"
    if kind == _STRING:
        return reader.string(what)
    if kind in SCALARS:
        value: Value = reader.numbers(kind, 1, what)[0].item()
        return value
    if kind != _ARRAY:
        raise reader.damaged(f"{what} has a value of the unknown type {kind}")
    kind, count = reader.u32(what), reader.u64(what)
    if kind == _STRING:
        return reader.strings(count, what)
    if kind in SCALARS:
        return reader.numbers(kind, count, what)
    raise reader.damaged(f"{what} is an array of the unknown type {kind}")


def _alignment(reader: BoundedReader, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise reader.damaged(f"general.alignment is {value!r}, which is no power of 2")
    return value


def _read_tensors(reader: BoundedReader, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Descriptions of the tensors, whose data must follow each other without gaps inside the file."""
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    expected = 0
    for number in range(count):
        tensor = _read_tensor(reader, number)
        if tensor.name in seen:
            raise reader.damaged(f"tensor {tensor.name!r} is there twice")
        if tensor.offset != expected:
            raise reader.damaged(f"tensor {tensor.name!r} begins at {tensor.offset} instead of {expected}")
        seen.add(tensor.name)
        tensors.append(tensor)
        expected += _padded(tensor.num_bytes, alignment)
    start = _padded(reader.position, alignment)
    for tensor in tensors:
        end = start + tensor.offset + tensor.num_bytes
        if end > reader.size:
            raise ModelFormatError(
                f"{reader.path} is truncated: it has {reader.size} bytes, and the tensor {tensor.name!r} "
                f"ends at {end}"
            )
    return tuple(tensors)


def _read_tensor(reader: BoundedReader, number: int) -> TensorInfo:
    name = reader.string(f"the name of tensor {number}", MAX_TENSOR_NAME)
    dimensions = reader.u32(f"tensor {name!r}")
    if dimensions > MAX_DIMENSIONS:
        raise reader.damaged(f"tensor {name!r} has {dimensions} dimensions, more than {MAX_DIMENSIONS}")
    shape = tuple(reader.u64(f"tensor {name!r}") for _ in range(dimensions))
    kind, offset = reader.u32(f"tensor {name!r}"), reader.u64(f"tensor {name!r}")
    if kind in REMOVED_TYPES:
        raise ModelFormatError(
            f"{reader.path} has the tensor {name!r} of type {REMOVED_TYPES[kind]}, which llama.cpp no longer "
            "reads: quantise the model again"
        )
    if kind not in TENSOR_TYPES:
        raise ModelFormatError(f"{reader.path} has the tensor {name!r} of the unknown type {kind}")
    tensor = TensorInfo(name, shape, TENSOR_TYPES[kind], offset, 0)
    if max(shape, default=1) >= 1 << 63 or tensor.size >= 1 << 63:
        raise reader.damaged(f"tensor {name!r} has the impossible shape {shape}")
    per_block = tensor.type.elements
    if (shape[0] if shape else 1) % per_block:
        raise reader.damaged(
            f"rows of tensor {name!r} have {shape[0] if shape else 1} elements, no multiple of {per_block} "
            f"as {tensor.type.name} needs"
        )
    return msgspec.structs.replace(tensor, num_bytes=tensor.size // per_block * tensor.type.num_bytes)


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment
