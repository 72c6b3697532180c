"""The kernels that draw tokens, against NumPy's."""

import numpy as np
import pytest

from millstream.backends.answers.native_token_sampler import NativeTokenSampler, fastest_token_sampler
from millstream.backends.answers.noise import noise_key, noise_words
from millstream.backends.answers.numpy_token_sampler import NumpyTokenSampler
from millstream.backends.answers.token_sampler import Filters
from millstream.backends.native import Missing, levels

KINDS = ("normal", "flat", "coarse", "equal", "long tail", "few possible")
MODES = (
    {},
    {"temperature": 0.7},
    {"temperature": 4.0, "top_p": 0.999},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 2500, "temperature": 3.0},
    {"top_k": 50, "top_p": 0.9, "temperature": 0.7},
    {"top_k": 2900, "top_p": 0.7, "min_p": 1e-4},
    {"top_p": 0.0},
    {"top_p": 0.05},
    {"top_p": 0.5, "temperature": 0.01},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"min_p": 0.9},
)


@pytest.fixture(scope="module", params=["avx512", "avx2", "generic"])
def level(request: pytest.FixtureRequest) -> str:
    found = levels()
    if isinstance(found, Missing) or request.param not in found:
        pytest.skip(f"no native kernels of level {request.param} here")
    return request.param


def rows_of(kind: str, n: int, vocab: int) -> np.ndarray:
    noise = np.random.default_rng(KINDS.index(kind))
    normal = noise.standard_normal((n, vocab))
    rows = {
        "normal": lambda: normal * 2.5,
        "flat": lambda: normal * 1e-3,
        "coarse": lambda: np.round(normal * 8) / 4,
        "equal": lambda: np.zeros((n, vocab)),
        "long tail": lambda: -1.1 * np.log(1.0 + noise.permuted(np.tile(np.arange(vocab), (n, 1)), axis=1)),
        "few possible": lambda: np.where(normal > normal.max(axis=1)[:, None] - 2, normal * 2, -np.inf),
    }[kind]()
    return rows.astype(np.float32)


def filters_of(n: int, vocab: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Filters:
    return Filters(
        np.full(n, temperature, np.float32),
        np.full(n, min(top_k or vocab, vocab)),
        np.full(n, top_p if top_p < 1 else np.inf),
        np.full(n, np.log(min_p) if min_p else -np.inf, np.float32),
    )


def words_of(n: int, position: int) -> np.ndarray:
    return noise_words(np.array([noise_key(seed) for seed in range(n)], np.uint64), np.full(n, position))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "n"), [(2, 60), (131, 60), (3001, 60), (20000, 40), (151936, 3)])
def test_draws_what_numpy_draws(level, kind, vocab, n):
    logits = rows_of(kind, n, vocab)
    everything, peaks = np.arange(n), logits.max(axis=1)
    native, reference = NativeTokenSampler(vocab, level), NumpyTokenSampler(vocab)
    for position, mode in enumerate(MODES):
        arguments = (logits, everything, peaks, filters_of(n, vocab, **mode), words_of(n, position))
        with np.errstate(over="ignore"):
            expected = reference.choose(*arguments)
        np.testing.assert_array_equal(native.choose(*arguments), expected, err_msg=str(mode))


def test_a_row_is_the_same_alone_and_among_others(level):
    vocab, n = 30011, 64
    logits = np.concatenate([rows_of(kind, 16, vocab) for kind in KINDS[:4]])
    modes = [MODES[row % len(MODES)] for row in range(n)]
    filters_of_rows = [filters_of(1, vocab, **mode) for mode in modes]
    filters = Filters(
        np.concatenate([each.temperature for each in filters_of_rows]),
        np.concatenate([each.top_k for each in filters_of_rows]),
        np.concatenate([each.top_p for each in filters_of_rows]),
        np.concatenate([each.min_gap for each in filters_of_rows]),
    )
    words, peaks, token_sampler = words_of(n, 0), logits.max(axis=1), NativeTokenSampler(vocab, level)
    together = token_sampler.choose(logits, np.arange(n), peaks, filters, words)
    totals = token_sampler.log_totals(logits, np.arange(n), peaks)
    ids, values = token_sampler.leading(logits, np.arange(n), 20)
    for row in range(n):
        one = np.array([row])
        drawn = token_sampler.choose(logits, one, peaks[one], filters.take(one), words[one])
        assert drawn[0] == together[row]
        assert token_sampler.log_totals(logits, one, peaks[one])[0] == totals[row]
        own_ids, own_values = token_sampler.leading(logits, one, 20)
        np.testing.assert_array_equal(own_ids[0], ids[row])
        np.testing.assert_array_equal(own_values[0], values[row])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [1, 7, 300, 9000, 20000])
def test_the_kept_set_of_top_k_is_exact(level, kind, top_k):
    vocab = 20011
    logits = rows_of(kind, 3, vocab)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    ids, values = NativeTokenSampler(vocab, level).leading(logits, np.arange(3), top_k)
    expected = np.take_along_axis(logits, order, 1)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(ids, np.where(np.isfinite(expected), order, 0))


@pytest.mark.parametrize("order", ["rising", "falling", "clustered"])
def test_leading_tokens_that_an_evenly_spaced_sample_misses(level, order):
    vocab = 40000
    row = np.arange(vocab, dtype=np.float32)
    if order == "falling":
        row = row[::-1].copy()
    if order == "clustered":
        row = np.where(np.arange(vocab) % 39 == 0, row, row + 1e5).astype(np.float32)
    for width in (1, 60, 30000):
        ids, _ = NativeTokenSampler(vocab, level).leading(row[None], np.arange(1), width)
        np.testing.assert_array_equal(ids[0], np.argsort(-row, kind="stable")[:width])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [2, 37, 4097, 151936])
def test_log_totals(level, kind, vocab):
    logits = rows_of(kind, 4, vocab) + np.float32(30)
    rows, peaks = np.array([0, 2, 3]), logits.max(axis=1)[[0, 2, 3]]
    expected = np.log(np.exp(logits[rows].astype(np.float64) - peaks[:, None]).sum(axis=1)) + peaks
    totals = NativeTokenSampler(vocab, level).log_totals(logits, rows, peaks)
    np.testing.assert_allclose(totals, expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("vocab", [2, 15, 64, 4095, 4096, 4097, 20011])
def test_best_wherever_it_stands(level, vocab):
    places = sorted({0, 1, vocab // 3, vocab // 2, vocab - 2, vocab - 1})
    noise = np.random.default_rng(vocab)
    for special in (9.0, np.inf, np.nan):
        logits = noise.standard_normal((len(places), vocab)).astype(np.float32)
        logits[np.arange(len(places)), places] = special
        logits[:, -1] = np.where(np.array(places) == vocab - 1, special, -9.0)
        ids, peaks = NativeTokenSampler(vocab, level).best(logits)
        assert ids.tolist() == places
        np.testing.assert_array_equal(peaks, np.float32([special] * len(places)))


def test_best_of_ties_and_of_nothing(level):
    logits = np.full((3, 9000), -np.inf, np.float32)
    logits[1, [4500, 8000]] = 2.0
    logits[2] = -0.0
    logits[2, 100] = 0.0
    ids, peaks = NativeTokenSampler(9000, level).best(logits)
    assert ids.tolist() == [0, 4500, 0]
    assert peaks.tolist() == [-np.inf, 2.0, 0.0]


def test_rows_may_be_some_of_many(level):
    vocab, n = 5000, 30
    logits = rows_of("normal", n, vocab)
    rows = np.array([3, 4, 11, 29])
    peaks, words = logits.max(axis=1)[rows], words_of(4, 0)
    filters = filters_of(4, vocab, top_p=0.8)
    native, reference = NativeTokenSampler(vocab, level), NumpyTokenSampler(vocab)
    np.testing.assert_array_equal(
        native.choose(logits, rows, peaks, filters, words),
        reference.choose(logits, rows, peaks, filters, words),
    )


def test_the_fastest_token_sampler_is_native_where_it_can_be():
    expected = NumpyTokenSampler if isinstance(levels(), Missing) else NativeTokenSampler
    assert type(fastest_token_sampler(100)) is expected
