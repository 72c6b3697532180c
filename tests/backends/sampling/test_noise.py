import numpy as np
import pytest

from millstream.backends.sampling.noise import noise_key, uniforms


def grid(seeds: range, positions: range) -> np.ndarray:
    keys = np.array([noise_key(seed) for seed in seeds], np.uint64)
    return np.stack([uniforms(keys, np.full(len(keys), position)) for position in positions])


def test_splitmix64_reference_values():
    # The first outputs of the published generator seeded with 1234567.
    assert noise_key(1234567) == 6457827717110365317
    words = uniforms(np.array([1234567], np.uint64), np.array([1]))
    assert words[0] == (3203168211198807973 >> 11) * 2.0**-53


@pytest.mark.parametrize("seeds", [range(200), range(2**63 - 200, 2**63)])
def test_uniform_over_seeds_and_positions(seeds):
    numbers = grid(seeds, range(100))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=64, range=(0, 1))
    expected = numbers.size / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 115  # 63 degrees of freedom, p = 6e-5


def test_neighbouring_seeds_and_positions_are_unrelated():
    numbers = grid(range(300), range(300)) - 0.5
    for other in (np.roll(numbers, 1, axis=0), np.roll(numbers, 1, axis=1)):
        assert abs((numbers * other).mean() * 12) < 0.015  # 4.5 standard deviations of a correlation


def test_depends_on_nothing_but_seed_and_position():
    numbers = grid(range(40), range(40))
    key = np.array([noise_key(17)], np.uint64)
    assert uniforms(key, np.array([23]))[0] == numbers[23, 17]
    assert len(np.unique(numbers)) == numbers.size
