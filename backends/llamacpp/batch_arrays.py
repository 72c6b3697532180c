"""The arrays through which tokens go into llama_decode."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Places = NDArray[np.intp]


class BatchArrays:
    """A llama_batch of up to `size` tokens over numpy arrays; each token belongs to one sequence."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens: Ints = np.zeros(size, np.int32)
        self._positions: Ints = np.zeros(size, np.int32)
        self._lanes: Ints = np.zeros(size, np.int32)
        self._counts: Ints = np.ones(size, np.int32)
        # Token i's list of sequences is the i-th entry of `_lanes` alone.
        offsets = np.arange(size, dtype=np.uint64) * np.uint64(self._lanes.itemsize)
        self._lists = offsets + np.uint64(self._lanes.ctypes.data)
        self._wanted: NDArray[np.int8] = np.zeros(size, np.int8)
        self._batch = api.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._lists),
            ("logits", self._wanted),
        ):
            kind = dict(api.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))

    def fill(
        self,
        tokens: Sequence[int] | Ints,
        positions: Sequence[int] | Ints,
        lanes: Sequence[int] | Ints,
        wanted: Sequence[int] | Places,
    ) -> Any:
        """The llama_batch with these tokens; it holds until the next call.

        Args:
            wanted: places of the tokens whose rows are to be given.
        """
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        self._lanes[:count] = lanes
        self._wanted[:count] = 0
        self._wanted[wanted] = 1
        self._batch.n_tokens = count
        return self._batch
