"""Stateless noise: one uniform number for each (seed, position), from a counter-based generator.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): the seed is mixed
into a key, and the key plus a multiple of the golden gamma is mixed again. Nothing is kept between draws.
"""

import numpy as np
from numpy.typing import NDArray

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = 0xFFFFFFFFFFFFFFFF


def noise_key(seed: int) -> int:
    """64-bit key of a seed; seeds that differ in one bit have unrelated keys."""
    word = (seed + _GAMMA) & _WORD
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def uniforms(keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] numbers in [0, 1), multiples of 2**-53, one for each (key, position)."""
    words = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_MIX_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    numbers: NDArray[np.float64] = (words >> np.uint64(11)) * 2.0**-53
    return numbers
