import numpy as np
import pytest

from millstream.backends.answers.noise import TokenNoise, noise_key, noise_words

VOCAB = 256


def bits_of_all(seeds: range, positions: range, vocab: int = VOCAB) -> np.ndarray:
    """[seed, position, token] random bits."""
    keys = np.array([noise_key(seed) for seed in seeds], np.uint64)
    words = noise_words(np.repeat(keys, len(positions)), np.tile(positions, len(seeds)))
    bits = np.empty((len(words), vocab), np.uint32)
    TokenNoise(vocab).fill(bits, np.empty_like(bits), words)
    return bits.reshape(len(seeds), len(positions), vocab)


def deviations(counts: np.ndarray) -> float:
    """By how many standard deviations a chi-square of equally likely cells exceeds its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_splitmix64_reference_values():
    # The first outputs of the published generator seeded with 1234567.
    assert noise_key(1234567) == 6457827717110365317
    assert noise_words(np.array([1234567], np.uint64), np.array([1]))[0] == 3203168211198807973


@pytest.mark.parametrize("seeds", [range(100), range(2**63 - 100, 2**63)])
@pytest.mark.parametrize("shift", [0, 6, 13, 20, 26])
def test_every_group_of_bits_is_uniform(seeds, shift):
    bits = bits_of_all(seeds, range(30))
    cells = (bits >> np.uint32(shift)) & np.uint32(63)
    assert deviations(np.bincount(cells.ravel(), minlength=64)) < 4.5
    # Each token's over all rows, and each row's over all tokens.
    for axis in (0, 1):
        by_one = cells.reshape(-1, VOCAB) if axis else cells.reshape(-1, VOCAB).T
        folded = by_one.reshape(by_one.shape[0], -1) + 64 * np.arange(by_one.shape[0])[:, None]
        assert deviations(np.bincount(folded.ravel(), minlength=64 * by_one.shape[0])) < 4.5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 2, 64])
def test_neighbouring_seeds_positions_and_ids_are_unrelated(axis, distance):
    bits = bits_of_all(range(70), range(70))
    count = bits.shape[axis] - distance
    first, second = bits.take(range(count), axis), bits.take(range(distance, distance + count), axis)
    for shift in (0, 29):
        pairs = ((first >> np.uint32(shift)) & 7) * 8 + ((second >> np.uint32(shift)) & 7)
        assert deviations(np.bincount(pairs.ravel(), minlength=64)) < 4.5
    numbers, others = first / 2**32 - 0.5, second / 2**32 - 0.5
    assert abs((numbers * others).mean() * 12) < 4.5 / first.size**0.5
    # Small numbers decide draws; they meet as often as they should.
    together = int(((first < 2**27) & (second < 2**27)).sum())
    expected = first.size / 2**10
    assert abs(together - expected) < 4.5 * expected**0.5


def test_depends_on_nothing_but_seed_position_and_id():
    bits = bits_of_all(range(40), range(40))
    words = noise_words(np.array([noise_key(17), noise_key(3)], np.uint64), np.array([23, 4]))
    some = TokenNoise(VOCAB + 1000).bits_of(np.array([[9, 200], [77, 77]]), words)
    assert some.tolist() == [[bits[17, 23, 9], bits[17, 23, 200]], [bits[3, 4, 77]] * 2]


def test_tokens_of_a_row_differ():
    for row in bits_of_all(range(2), range(2), 100_000).reshape(4, -1):
        assert len(np.unique(row)) == len(row)
