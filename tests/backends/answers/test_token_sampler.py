import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from millstream.backends.answers.noise import TokenNoise, noise_key, noise_words
from millstream.backends.answers.numpy_token_sampler import NumpyTokenSampler
from millstream.backends.answers.token_sampler import Filters, TokenSampler

DRAWS = 4000
WORDS = noise_words(
    np.array([noise_key(seed) for seed in range(DRAWS)], np.uint64), np.zeros(DRAWS, np.int64)
)
settled = settings(max_examples=60, deadline=None, derandomize=True)


def random_rows(seed: int, n: int, vocab: int, *, coarse: bool = False) -> np.ndarray:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, vocab)) * 3).float()
    return (rows.bfloat16().float() if coarse else rows).numpy()


def filters_of(n: int, vocab: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Filters:
    return Filters(
        np.full(n, temperature, np.float32),
        np.full(n, min(top_k or vocab, vocab)),
        np.full(n, top_p if top_p < 1 else np.inf),
        np.full(n, np.log(min_p) if min_p else -np.inf, np.float32),
    )


def drawn_by(token_sampler: TokenSampler, logits: np.ndarray, words: np.ndarray, **params) -> np.ndarray:
    """The token drawn from each row under its word."""
    n, vocab = logits.shape
    with np.errstate(over="ignore"):
        return token_sampler.choose(
            logits, np.arange(n), logits.max(axis=1), filters_of(n, vocab, **params), words
        )


@pytest.fixture(scope="session")
def drawn_from(make_token_sampler):
    """From rows and their words to the token drawn from each, by each implementation."""
    return lambda logits, words, **params: drawn_by(
        make_token_sampler(logits.shape[1]), logits, words, **params
    )


@pytest.fixture(scope="session")
def drawn(drawn_from):
    """The tokens that each of the words leads to from one row."""
    return lambda row, words=WORDS, **params: drawn_from(
        np.repeat(row[None], len(words), axis=0), words, **params
    )


def first_arrival(row: np.ndarray, word: np.uint64, temperature: float) -> int:
    """The winner of the whole race, every token looked at."""
    bits = TokenNoise(len(row)).bits_of(np.arange(len(row))[None], np.array([word]))[0]
    noise = -np.log(1 - (bits + 0.5) / 2**32)
    with np.errstate(over="ignore"):
        return int((noise * np.exp(-((row - row.max()) / np.float32(temperature)))).argmin())


def assert_follows(tokens: np.ndarray, expected: np.ndarray) -> None:
    """A chi-square test at five standard deviations; tokens expected fewer than five times are one cell."""
    counts = np.bincount(tokens, minlength=len(expected))
    assert not counts[expected == 0].any()
    expected = expected * len(tokens)
    rare = expected < 5
    cells = np.append(expected[~rare], expected[rare].sum())
    found = np.append(counts[~rare], counts[rare].sum())
    chi_square = ((found - cells) ** 2 / np.maximum(cells, 1)).sum()
    freedom = len(cells) - 1
    cube_root = (chi_square / freedom) ** (1 / 3)  # nearly normal (Wilson, Hilferty)
    assert cube_root < 1 - 2 / (9 * freedom) + 5 * (2 / (9 * freedom)) ** 0.5


def filtered_probabilities(row: np.ndarray, temperature, top_k, top_p, min_p) -> np.ndarray:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(row.copy())[None])
    return scores.double().softmax(-1)[0].numpy()


def far_from_every_edge(row, temperature, top_k, top_p, min_p) -> bool:
    """Whether no token lies so near a bound that single precision decides about it."""
    scores = np.sort(row.astype(np.float64))[::-1][: top_k or None] / temperature
    shares = np.exp(scores - scores[0])
    sums = np.cumsum(shares) / shares.sum()
    return bool(np.abs(sums - top_p).min() > 1e-4 or top_p == 1) and bool(np.abs(shares - min_p).min() > 1e-4)


@settled
@given(
    st.integers(0, 2**32),
    st.integers(2, 40),
    st.floats(0.1, 5.0),
    st.integers(0, 50),
    st.floats(0.0, 1.0),
    st.one_of(st.just(0.0), st.floats(0.01, 1.0)),
)
def test_distribution_is_that_of_transformers(drawn, seed, vocab, temperature, top_k, top_p, min_p):
    row = random_rows(seed, 1, vocab)[0]
    assume(far_from_every_edge(row, temperature, top_k, top_p, min_p))
    expected = filtered_probabilities(row, temperature, top_k, top_p, min_p)
    assert_follows(drawn(row, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), expected)


@pytest.mark.parametrize("vocab", [5, 3000])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 4.0])
def test_probabilities_of_a_whole_row(drawn, vocab, temperature):
    row = random_rows(3, 1, vocab)[0]
    tokens = drawn(row, temperature=temperature)
    assert_follows(tokens, filtered_probabilities(row, temperature, 0, 1.0, 0.0))


@pytest.mark.parametrize("vocab", [2, 3, 63, 64, 4096, 70001])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_looking_closely_at_a_few_tokens_or_at_all_gives_the_same(drawn_from, vocab, temperature):
    rows = random_rows(vocab, 6, vocab, coarse=True)
    rows[1] *= 5
    rows[2, vocab // 2 :] += 20
    rows[3, : vocab // 2] = -np.inf
    rows[4] = -1e38
    rows[4, vocab - 1] = 3e38
    rows[5] = 0
    logits = np.repeat(rows, 8, axis=0)
    tokens = drawn_from(logits, WORDS[: len(logits)], temperature=temperature)
    expected = [first_arrival(row, word, temperature) for row, word in zip(logits, WORDS, strict=False)]
    assert tokens.tolist() == expected


@pytest.mark.parametrize("params", [{"top_k": 4095}, {"min_p": 1e-9}])
def test_all_tokens_and_nearly_all_share_their_noise(drawn, params):
    row = random_rows(11, 1, 4096)[0]
    np.testing.assert_array_equal(drawn(row, WORDS[:300]), drawn(row, WORDS[:300], **params))


@pytest.mark.parametrize("params", [{}, {"top_k": 500}, {"top_p": 0.9}, {"min_p": 0.2}])
def test_rounding_errors_in_the_logits_change_no_draw(drawn_from, params):
    noise = np.random.default_rng(2)
    logits = noise.standard_normal((2000, 4096), np.float32) * np.float32(0.3)
    logits += 1
    inexact = logits * (1 + noise.standard_normal(logits.shape, np.float32) * np.float32(1e-5))
    changed = drawn_from(logits, WORDS[:2000], **params) != drawn_from(inexact, WORDS[:2000], **params)
    assert not changed.any()


@pytest.mark.parametrize("vocab", [2, 63, 300, 5000, 70001])
@pytest.mark.parametrize("width", [1, 5, 64, 1000, 16384])
def test_leading_tokens_stand_by_logit_then_id(make_token_sampler, vocab, width):
    logits = random_rows(vocab, 4, vocab, coarse=True)
    logits[1] = np.where(np.arange(vocab) % 3, -0.0, 0.0)
    logits[2, 2:] = -np.inf
    logits[3] = -np.abs(logits[3])
    width = min(width, vocab)
    ids, values = make_token_sampler(vocab).leading(logits, np.arange(4), width)
    for row, row_ids, row_values in zip(logits, ids, values, strict=True):
        order = np.argsort(-row, kind="stable")[:width]
        np.testing.assert_array_equal(row_values, row[order])
        finite = np.isfinite(row_values)
        np.testing.assert_array_equal(row_ids[finite], order[finite])


def test_leading_tokens_of_more_rows_than_a_key_can_tell_apart(make_token_sampler):
    logits = random_rows(1, 5000, 40, coarse=True)
    rows = np.arange(0, 5000, 2)
    ids, values = make_token_sampler(40).leading(logits, rows, 3)
    expected = np.argsort(-logits[rows], axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits[rows], expected, 1))


@pytest.mark.parametrize(
    "params", [{"top_p": 0.5}, {"top_p": 0.95}, {"min_p": 0.02}, {"top_p": 0.9, "min_p": 1e-4}]
)
@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_looking_at_a_few_leading_tokens_or_at_all_gives_the_same(params, temperature):
    vocab = 6000
    for row in random_rows(7, 3, vocab, coarse=True):
        rows = np.repeat(row[None], 50, axis=0)
        at_once = NumpyTokenSampler(vocab, rungs=())
        stepwise = drawn_by(NumpyTokenSampler(vocab), rows, WORDS[:50], temperature=temperature, **params)
        whole = drawn_by(at_once, rows, WORDS[:50], temperature=temperature, **params)
        np.testing.assert_array_equal(stepwise, whole)


@pytest.mark.parametrize("vocab", [50, 5000])
def test_top_p_zero_keeps_one_token(drawn, vocab):
    row = random_rows(5, 1, vocab, coarse=True)[0]
    assert set(drawn(row, temperature=3.0, top_p=0.0)) == {int(row.argmax())}


def test_top_p_one_keeps_all(drawn):
    row = np.zeros(400, np.float32)
    assert set(drawn(row, top_p=1.0)) == set(range(400))
    assert set(drawn(row, top_p=1.0, top_k=399)) == set(range(399))


def test_top_p_at_an_exact_bound(drawn):
    row = np.log(np.array([0.25, 0.5, 0.125, 0.125], np.float32))
    assert set(drawn(row, top_p=0.5)) == {1}
    assert set(drawn(row, top_p=np.nextafter(0.75, 1))) == {0, 1, 2}


def test_top_p_counts_among_the_top_k(drawn):
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert set(drawn(row, top_p=0.5)) == {0, 1}
    assert set(drawn(row, top_k=2, top_p=0.5)) == {0}


def test_min_p_one_keeps_the_likeliest_only(drawn):
    assert set(drawn(np.array([1, 3, 2, 3], np.float32), min_p=1.0)) == {1, 3}


@pytest.mark.parametrize("top_k", [8, 9, 10**9])
def test_top_k_of_the_vocabulary_or_more_is_no_top_k(drawn, top_k):
    row = random_rows(2, 1, 8)[0]
    np.testing.assert_array_equal(drawn(row, top_k=top_k), drawn(row))


def test_ties_are_kept_by_rising_id(drawn):
    row = np.array([0, 5, 5, 1, 5, 5], np.float32)
    assert set(drawn(row, top_k=2)) == {1, 2}
    assert set(drawn(row, top_k=4)) == {1, 2, 4, 5}
    assert set(drawn(row, top_p=0.4)) == {1, 2}
    wide = np.zeros(20000, np.float32)
    assert set(drawn(wide, WORDS[:100], top_k=70)) <= set(range(70))


def test_tokens_at_minus_infinity_are_never_drawn(drawn):
    row = np.full(3000, -np.inf, np.float32)
    row[[7, 2999]] = [1.0, 2.0]
    for params in ({}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}, {"top_k": 2900}):
        assert set(drawn(row, WORDS[:400], **params)) == {7, 2999}


def test_far_apart_logits_and_extreme_temperatures(drawn):
    row = np.array([-3e38, 3e38, 0, 3e38], np.float32)
    assert set(drawn(row)) == {1, 3}
    assert set(drawn(row, temperature=1e-5)) == {1, 3}
    assert set(drawn(row, temperature=1e-5, top_k=3)) == {1, 3}
    assert len(set(drawn(np.arange(50, dtype=np.float32), temperature=100.0, top_p=0.999))) == 50


def test_a_draw_is_the_same_in_any_company(drawn_from):
    logits = random_rows(4, 90, 3000)
    together = drawn_from(logits, WORDS[:90], temperature=0.8)
    alone = [drawn_from(logits[at : at + 1], WORDS[at : at + 1], temperature=0.8)[0] for at in range(90)]
    assert together.tolist() == alone


def test_best_is_the_first_largest(make_token_sampler):
    ids, peaks = make_token_sampler(3).best(
        np.array([[1, 3, 3], [np.nan, 9, 1], [-np.inf, -np.inf, -np.inf]], np.float32)
    )
    assert ids[0] == 1
    assert peaks[0] == 3
    assert np.isnan(peaks[1])
    assert np.isneginf(peaks[2])
