"""Stateless noise: 32 random bits for each (seed, position, token id). Nothing is kept between draws.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) makes a word of each
(seed, position): the seed is mixed into a key, the key plus a multiple of the golden gamma is mixed again.
The word keys a 32-bit multiply-xorshift hash of the token ids, with the constants of lowbias32 (Wellons,
"Prospecting for hash functions", 2018).
"""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint32]
Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = 0xFFFFFFFFFFFFFFFF
_HASH_1 = np.uint32(0x7FEB352D)
_HASH_2 = np.uint32(0x846CA68B)


def noise_key(seed: int) -> int:
    """64-bit key of a seed; seeds that differ in one bit have unrelated keys."""
    word = (seed + _GAMMA) & _WORD
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def noise_words(keys: Words, positions: Ints) -> Words:
    """[n] 64-bit words, one for each (key, position)."""
    words = keys + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_MIX_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_MIX_2)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


class TokenNoise:
    """Random bits by (word, token id) for one vocabulary; holds the mixed ids, 4 bytes a token.

    Under one word this is a bijection of 32 bits: no two tokens of a row have the same bits.
    """

    def __init__(self, vocab_size: int) -> None:
        ids = np.arange(vocab_size, dtype=np.uint32)
        ids ^= ids >> np.uint32(16)
        ids *= _HASH_1
        ids ^= ids >> np.uint32(15)
        ids *= _HASH_2
        self._mixed_ids = ids ^ (ids >> np.uint32(16))

    def fill(self, bits: Bits, scratch: Bits, words: Words) -> None:
        """Write into `bits` [n, vocab] those of all tokens under n words; `scratch` has the same shape."""
        np.bitwise_xor(self._mixed_ids, _lower_halves(words), out=bits)
        _finish(bits, scratch, words)

    def bits_of(self, ids: Ints, words: Words) -> Bits:
        """[n, k] bits of `ids` [n, k], each row's under its word."""
        bits = self._mixed_ids[ids] ^ _lower_halves(words)
        _finish(bits, np.empty_like(bits), words)
        return bits


def _lower_halves(words: Words) -> Bits:
    return words.astype(np.uint32)[:, None]


def _finish(bits: Bits, scratch: Bits, words: Words) -> None:
    """Mix in place; a word's lower half is in the bits already, its upper half, made odd, is a factor."""
    bits *= (words >> np.uint64(32)).astype(np.uint32)[:, None] | np.uint32(1)
    np.right_shift(bits, np.uint32(16), out=scratch)
    bits ^= scratch
    bits *= _HASH_2
