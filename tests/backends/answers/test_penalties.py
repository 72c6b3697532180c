import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from millstream.backends.answers.penalties import Penalties
from millstream.scheduler.batch import SequenceStart
from millstream.scheduler.sampling_params import SamplingParams

VOCAB = 12
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
rows = st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).standard_normal(VOCAB) * 5).astype(np.float32)
)
words = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=5)
quick = settings(max_examples=60, deadline=None)


def penalties_of(prompt, output, eos=(), min_output=0, **params):
    start = SequenceStart(
        seq=0,
        token_ids=(*prompt, *output),
        num_prompt_tokens=len(prompt),
        params=SamplingParams(**params),
        seed=0,
        eos_token_ids=tuple(eos),
        min_output_tokens=min_output,
    )
    return Penalties(start, VOCAB)


def applied(row, prompt, output, **params):
    changed = row.copy()
    penalties_of(prompt, output, **params).apply(changed)
    return changed


def by_transformers(processor, row, prompt, output):
    ids = torch.tensor([[*prompt, *output]])
    return processor(ids, torch.from_numpy(row.copy())[None])[0].numpy()


@quick
@given(rows, prompts, tokens, st.floats(0.05, 2.0))
def test_repetition_penalty(row, prompt, output, penalty):
    theirs = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), row, prompt, output)
    np.testing.assert_allclose(applied(row, prompt, output, repetition_penalty=penalty), theirs, rtol=1e-6)


@quick
@given(rows, prompts, tokens.filter(len), st.floats(0.05, 2.0))
def test_repetition_penalty_over_the_output_alone(row, prompt, output, penalty):
    processor = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt))
    ours = applied(row, prompt, output, repetition_penalty=penalty, suppress_repetition_in_generation=True)
    np.testing.assert_allclose(ours, by_transformers(processor, row, prompt, output), rtol=1e-6)


@quick
@given(rows, prompts, tokens, st.integers(1, 4))
def test_no_repeat_ngram(row, prompt, output, size):
    theirs = by_transformers(NoRepeatNGramLogitsProcessor(size), row, prompt, output)
    np.testing.assert_array_equal(applied(row, prompt, output, no_repeat_ngram_size=size), theirs)


@quick
@given(rows, prompts, tokens, words)
def test_bad_words(row, prompt, output, bad):
    theirs = by_transformers(NoBadWordsLogitsProcessor(bad), row, prompt, output)
    ours = applied(row, prompt, output, bad_words_ids=tuple(map(tuple, bad)))
    np.testing.assert_array_equal(ours, theirs)


@quick
@given(rows, prompts, tokens, st.integers(0, 40), st.sets(st.integers(0, VOCAB - 1), min_size=1))
def test_min_new_tokens(row, prompt, output, minimum, enders):
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), minimum, sorted(enders))
    ours = applied(row, prompt, output, eos=sorted(enders), min_output=minimum)
    np.testing.assert_array_equal(ours, by_transformers(processor, row, prompt, output))


def test_min_new_tokens_masks_single_stop_tokens_too():
    row = np.zeros(VOCAB, np.float32)
    ours = applied(row, [1], [], eos=[2], min_output=1, stop_token_ids=(3,), stop_words_ids=((4,), (5, 6)))
    assert np.flatnonzero(np.isneginf(ours)).tolist() == [2, 3, 4]


@quick
@given(rows, prompts, tokens, st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), min_size=1))
def test_logit_bias(row, prompt, output, bias):
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    theirs = by_transformers(processor, row, prompt, output)
    np.testing.assert_array_equal(applied(row, prompt, output, logit_bias=bias), theirs)


@quick
@given(rows, prompts, tokens, st.sets(st.integers(0, VOCAB - 1), min_size=1))
def test_allowed_tokens(row, prompt, output, allowed):
    ours = applied(row, prompt, output, allowed_token_ids=tuple(allowed))
    expected = np.where(np.isin(np.arange(VOCAB), list(allowed)), row, -np.inf)
    np.testing.assert_array_equal(ours, expected)


@quick
@given(rows, prompts, tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_output_alone(row, prompt, output, presence, frequency):
    counts = np.bincount(np.array(output, np.int64), minlength=VOCAB)
    ours = applied(row, prompt, output, presence_penalty=presence, frequency_penalty=frequency)
    expected = row - frequency * counts - presence * (counts > 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@quick
@given(rows, prompts, tokens, words, st.integers(1, 3), st.floats(0.5, 2.0), st.integers(0, 20))
def test_all_together_as_transformers_orders_them(row, prompt, output, bad, size, penalty, minimum):
    processors = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor([[[3], 1.5]]),
            NoBadWordsLogitsProcessor(bad),
            MinNewTokensLengthLogitsProcessor(len(prompt), minimum, [0]),
            NoRepeatNGramLogitsProcessor(size),
            RepetitionPenaltyLogitsProcessor(penalty),
        ]
    )
    ours = applied(
        row,
        prompt,
        output,
        eos=[0],
        min_output=minimum,
        logit_bias={3: 1.5},
        bad_words_ids=tuple(map(tuple, bad)),
        no_repeat_ngram_size=size,
        repetition_penalty=penalty,
    )
    np.testing.assert_allclose(ours, by_transformers(processors, row, prompt, output), rtol=1e-6)


@quick
@given(rows, prompts, tokens, words, st.integers(1, 4), st.booleans())
def test_appending_equals_starting_with_the_same_tokens(row, prompt, output, bad, size, suppress):
    params = {
        "eos": [1],
        "min_output": 15,
        "bad_words_ids": tuple(map(tuple, bad)),
        "no_repeat_ngram_size": size,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "suppress_repetition_in_generation": suppress,
    }
    grown = penalties_of(prompt, [], **params)
    for token in output:
        grown.append(token)
    ours, expected = row.copy(), row.copy()
    grown.apply(ours)
    penalties_of(prompt, output, **params).apply(expected)
    np.testing.assert_array_equal(ours, expected)


def test_counts_grow_beyond_their_first_room():
    vocab = 2000
    start = SequenceStart(0, (5,), 1, SamplingParams(frequency_penalty=1.0), 0)
    penalties = Penalties(start, vocab)
    for token in [*range(1000), *range(500)]:
        penalties.append(token)
    row = np.zeros(vocab, np.float32)
    penalties.apply(row)
    np.testing.assert_array_equal(row, np.repeat(np.float32([-2, -1, 0]), [500, 500, 1000]))


def test_prompt_tokens_without_a_logit_are_passed_over():
    row = np.ones(VOCAB, np.float32)
    prompt = [VOCAB + 7, 2, VOCAB + 9, 2]
    ours = applied(row, prompt, [], repetition_penalty=2.0, no_repeat_ngram_size=2)
    assert ours[2] == 0.5
    assert ours.sum() == VOCAB - 0.5


@pytest.mark.parametrize(
    ("params", "active"),
    [
        ({}, False),
        ({"eos": [1]}, False),
        ({"eos": [1], "min_output": 2}, True),
        ({"logit_bias": {}}, False),
        ({"logit_bias": {1: 1.0}}, True),
        ({"allowed_token_ids": (1,)}, True),
        ({"bad_words_ids": ((1, 2),)}, True),
        ({"no_repeat_ngram_size": 2}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": 0.1}, True),
    ],
)
def test_active(params, active):
    assert penalties_of([1, 2], [], **params).active is active


def test_a_minimal_length_that_is_reached_is_no_longer_active():
    penalties = penalties_of([1, 2], [3], eos=[1], min_output=2)
    assert penalties.active
    penalties.append(4)
    assert not penalties.active
