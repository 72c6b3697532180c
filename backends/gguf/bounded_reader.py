"""Reading numbers and strings of a file that may be damaged, never past its end."""

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelFormatError

SCALARS: Mapping[int, str] = MappingProxyType(
    {
        0: "u1",
        1: "i1",
        2: "<u2",
        3: "<i2",
        4: "<u4",
        5: "<i4",
        6: "<f4",
        7: "?",
        10: "<u8",
        11: "<i8",
        12: "<f8",
    }
)
"""GGUF's numbers of types that have a fixed size -> numpy's names."""
MAX_STRINGS = 1 << 24
"""Most entries of an array of strings; vocabularies have less than a million."""
MAX_BYTES = 1 << 28
"""Most bytes of one value; the strings of a vocabulary have less than a tenth of that."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class StringArray:
    """An array of strings in the form the file has it; decoded when it is walked through."""

    __slots__ = ("_count", "_data")

    def __init__(self, data: bytes, count: int) -> None:
        """`data` holds `count` lengths of 8 bytes, each followed by that many bytes."""
        self._data = data
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        position = 0
        for _ in range(self._count):
            end = position + 8 + _U64.unpack_from(self._data, position)[0]
            yield self._data[position + 8 : end]
            position = end


class BoundedReader:
    """A position in a file's bytes that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def take(self, count: int, what: str) -> int:
        """Go on by `count` bytes; gives the position before them.

        Raises:
            ModelFormatError: there are not so many bytes, or they are more than one value may have.
        """
        start = self.position
        if count > self.size - start:
            raise ModelFormatError(
                f"{self.path} is truncated or damaged: {what} would take {count} bytes from position "
                f"{start}, and the file ends at {self.size}"
            )
        if count > MAX_BYTES:
            raise self.damaged(f"{what} would take {count} bytes, more than {MAX_BYTES}")
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        """A whole number of 4 bytes."""
        number: int = _U32.unpack_from(self.data, self.take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        """A whole number of 8 bytes."""
        number: int = _U64.unpack_from(self.data, self.take(8, what))[0]
        return number

    def string(self, what: str, most: int = MAX_BYTES) -> str:
        """A string of at most `most` bytes; bytes that are no UTF-8 become U+FFFD."""
        length = self.u64(what)
        if length > most:
            raise self.damaged(f"{what} has {length} bytes, more than {most}")
        start = self.take(length, what)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def strings(self, count: int, what: str) -> StringArray:
        """`count` strings; only their lengths are looked at here."""
        if count > MAX_STRINGS:
            raise self.damaged(f"{what} has {count} strings, more than {MAX_STRINGS}")
        data, unpack = self.data, _U64.unpack_from  # looked up once: there may be half a million strings
        first = position = self.position
        last = min(self.size, first + MAX_BYTES)
        for _ in range(count):
            if last - position < 8:
                break
            position += 8 + unpack(data, position)[0]
            if position > last:
                break
        else:
            self.position = position
            return StringArray(data[first:position], count)
        raise ModelFormatError(
            f"{self.path} is truncated or damaged: the strings of {what} from position {first} go on behind "
            f"position {last}"
        )

    def numbers(self, kind: int, count: int, what: str) -> NDArray[Any]:
        """A copy of `count` numbers of GGUF's type `kind` [count]."""
        dtype = np.dtype(SCALARS[kind])
        start = self.take(count * dtype.itemsize, what)
        data = self.data[start : self.position]
        if dtype.kind != "b":
            return np.frombuffer(data, dtype)
        truths: NDArray[np.bool_] = np.frombuffer(data, np.uint8) != 0
        return truths

    def damaged(self, why: str) -> ModelFormatError:
        """An error that says what is wrong, to be raised."""
        return ModelFormatError(f"{self.path} is damaged: {why}")
