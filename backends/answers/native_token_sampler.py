"""NativeTokenSampler: draws tokens by the kernels in C++, rows shared out over the threads of torch."""

import numpy as np
from numpy.typing import NDArray

from ..native import Missing, best_level, load
from .noise import Ints, Words
from .numpy_token_sampler import NumpyTokenSampler
from .token_sampler import Doubles, Filters, Floats, TokenSampler

_BLOCK_ELEMENTS = 2**21
"""Logits copied and worked on together: 8 megabytes, so that they stay in the last-level cache."""


class NativeTokenSampler:
    """A TokenSampler that reads each row a few times and sorts nothing; see csrc/sampling.cpp."""

    def __init__(self, vocab_size: int, level: str) -> None:
        """`level` is one of `native.levels()`.

        Raises:
            InvalidArgument: there is no such level here.
        """
        self._vocab_size = vocab_size
        self._kernels = load(level)
        self.block_rows = max(1, _BLOCK_ELEMENTS // vocab_size)

    def best(self, logits: Floats) -> tuple[Ints, Floats]:
        """See `TokenSampler.best`."""
        ids, peaks = np.empty(len(logits), np.int64), np.empty(len(logits), np.float32)
        self._kernels.sampling_best(
            _address(logits), len(logits), self._vocab_size, _address(ids), _address(peaks)
        )
        return ids, peaks

    def choose(self, logits: Floats, rows: Ints, peaks: Floats, filters: Filters, words: Words) -> Ints:
        """See `TokenSampler.choose`."""
        chosen = np.empty(len(rows), np.int64)
        self._kernels.sampling_draw(
            _address(logits),
            self._vocab_size,
            _address(rows),
            len(rows),
            _address(peaks),
            _address(filters.temperature),
            _address(filters.top_k),
            _address(filters.top_p),
            _address(filters.min_gap),
            _address(words),
            _address(chosen),
        )
        return chosen

    def leading(self, logits: Floats, rows: Ints, width: int) -> tuple[Ints, Floats]:
        """See `TokenSampler.leading`."""
        ids, values = np.empty((len(rows), width), np.int64), np.empty((len(rows), width), np.float32)
        self._kernels.sampling_leading(
            _address(logits),
            self._vocab_size,
            _address(rows),
            len(rows),
            width,
            _address(ids),
            _address(values),
        )
        return ids, values

    def log_totals(self, logits: Floats, rows: Ints, peaks: Floats) -> Doubles:
        """See `TokenSampler.log_totals`."""
        totals = np.empty(len(rows))
        self._kernels.sampling_log_totals(
            _address(logits), self._vocab_size, _address(rows), len(rows), _address(peaks), _address(totals)
        )
        return totals


def fastest_token_sampler(vocab_size: int) -> TokenSampler:
    """The native one at its best level, or NumPy's where the kernels were not built."""
    level = best_level()
    return (
        NumpyTokenSampler(vocab_size) if isinstance(level, Missing) else NativeTokenSampler(vocab_size, level)
    )


def _address(
    array: NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64] | NDArray[np.uint64],
) -> int:
    """Of the first element of an array without gaps."""
    return array.ctypes.data
