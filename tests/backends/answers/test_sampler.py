import math

import numpy as np
import pytest
import torch

from millstream.backends.answers.sampler import best_on_device
from millstream.errors import InvalidArgument
from millstream.scheduler.batch import SequenceStart
from millstream.scheduler.sampling_params import SamplingParams

KINDS = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 40, "top_p": 0.9, "temperature": 0.8},
    {"top_k": 700},
    {"top_p": 0.3},
    {"top_p": 0.97, "temperature": 3.0},
    {"min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.01, "top_k": 200},
    {"temperature": 0.0, "repetition_penalty": 1.4},
    {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": -0.3, "top_k": 30},
    {"no_repeat_ngram_size": 1, "top_p": 0.8},
    {"allowed_token_ids": tuple(range(0, 60, 2)), "logit_bias": {4: 2.5}},
    {"bad_words_ids": ((3,), (5, 6)), "logprobs": True, "top_logprobs": 3},
    {"temperature": 0.0, "logprobs": True, "top_logprobs": 20},
    {"temperature": 1.3, "logprobs": True},
)


def start(seq=0, prompt=(1, 2, 3), output=(), seed=0, eos=(), min_output=0, **params):
    return SequenceStart(
        seq, (*prompt, *output), len(prompt), SamplingParams(**params), seed, tuple(eos), min_output
    )


def coarse_logits(seed: int, rows: int, vocab: int) -> torch.Tensor:
    """Random logits on bfloat16's coarse grid, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator) * 3).bfloat16().float()


@pytest.mark.parametrize("vocab", [100, 3001, 20000])
def test_alone_or_among_others_bitwise_the_same(sampler_of, vocab):
    count = 2 * len(KINDS)
    starts = [
        start(seq, prompt=range(seq + 1), seed=seq // 3, **KINDS[seq % len(KINDS)]) for seq in range(count)
    ]
    steps = [coarse_logits(step, count, vocab) for step in range(3)]
    together, alone = sampler_of(vocab, count, "cpu"), sampler_of(vocab, count, "cpu")
    for item in starts:
        together.start(item)
        alone.start(item)
    order = np.random.default_rng(0).permutation(count).tolist()
    for logits in steps:
        whole = together.sample(logits[order], order)
        assert whole.errors == {}
        for seq in range(count):
            single = alone.sample(logits[seq : seq + 1], [seq])
            assert single.token_ids[0] == whole.token_ids[order.index(seq)]
            assert single.logprobs.get(seq) == whole.logprobs.get(seq)
            assert (seq in single.logprobs) is KINDS[seq % len(KINDS)].get("logprobs", False)


def test_any_subset_in_any_step(sampler_of):
    vocab, count = 500, 12
    logits = coarse_logits(5, count, vocab)
    every, some = sampler_of(vocab, count, "cpu"), sampler_of(vocab, count, "cpu")
    for seq in range(count):
        for sampler in (every, some):
            sampler.start(start(seq, seed=seq, temperature=1.5, repetition_penalty=1.0 + seq % 2))
    expected = [every.sample(logits, range(count)).token_ids for _ in range(2)]
    for half in (list(range(0, count, 2)), list(range(1, count, 2))):
        for step in range(2):
            answer = some.sample(logits[half], half).token_ids
            assert answer == [expected[step][seq] for seq in half]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_sequence_goes_on_the_same(sampler_of, kind):
    vocab = 300
    steps = [coarse_logits(100 + step, 1, vocab) for step in range(12)]
    sampler = sampler_of(vocab, 2, "cpu")
    sampler.start(start(0, seed=9, eos=[7], min_output=8, **kind))
    tokens = [sampler.sample(logits, [0]).token_ids[0] for logits in steps]
    sampler.retire(0)
    sampler.start(start(1, output=tokens[:5], seed=9, eos=[7], min_output=8, **kind))
    assert [sampler.sample(logits, [1]).token_ids[0] for logits in steps[5:]] == tokens[5:]


def test_seed_and_position_both_count(sampler_of):
    vocab = 1000
    row = coarse_logits(1, 1, vocab)
    sampler = sampler_of(vocab, 2, "cpu")
    sampler.start(start(0, seed=1, temperature=3.0))
    sampler.start(start(1, seed=2, temperature=3.0))
    draws = [sampler.sample(row.repeat(2, 1), [0, 1]).token_ids for _ in range(30)]
    first, second = zip(*draws, strict=True)
    assert first != second
    assert len(set(first)) > 20


def test_draws_follow_the_distribution(sampler_of):
    row = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, 1.5, -0.5, 0.25]])
    count, rounds = 200, 40
    sampler = sampler_of(8, count, "cpu")
    for seq in range(count):
        sampler.start(start(seq, seed=seq))
    draws = [
        token for _ in range(rounds) for token in sampler.sample(row.repeat(count, 1), range(count)).token_ids
    ]
    expected = row.softmax(-1)[0].numpy() * count * rounds
    chi_square = ((np.bincount(draws, minlength=8) - expected) ** 2 / expected).sum()
    assert chi_square < 30  # 7 degrees of freedom, p = 1e-4


def test_greedy_takes_the_first_of_the_largest(sampler_of):
    logits = torch.tensor([[1.0, 4.0, 4.0, 0.0]] * 3)
    sampler = sampler_of(4, 3, "cpu")
    sampler.start(start(0, temperature=0.0))
    sampler.start(start(1, top_k=1))
    sampler.start(start(2, temperature=1e-6))
    assert sampler.sample(logits, [0, 1, 2]).token_ids == [1, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [{"temperature": 0.0}, {"top_k": 3}, {"repetition_penalty": 1.5}])
def test_a_row_that_is_not_finite_fails_alone(sampler_of, bad, kind):
    logits = coarse_logits(3, 3, 50)
    sampler, calm = sampler_of(50, 3, "cpu"), sampler_of(50, 3, "cpu")
    for seq in range(3):
        sampler.start(start(seq, seed=seq, logprobs=True, **kind))
        calm.start(start(seq, seed=seq, logprobs=True, **kind))
    expected = calm.sample(logits, [0, 1, 2])
    logits[1, 20] = bad
    answer = sampler.sample(logits, [0, 1, 2])
    assert answer.token_ids == [expected.token_ids[0], None, expected.token_ids[2]]
    assert answer.errors == {1: "The model's logits for position 3 are not finite numbers."}
    assert set(answer.logprobs) == {0, 2}


def test_a_failed_row_does_not_move_its_sequence(sampler_of):
    logits = coarse_logits(3, 1, 50)
    sampler, calm = sampler_of(50, 1, "cpu"), sampler_of(50, 1, "cpu")
    sampler.start(start(frequency_penalty=1.0))
    calm.start(start(frequency_penalty=1.0))
    assert sampler.sample(torch.full((1, 50), math.nan), [0]).token_ids == [None]
    assert sampler.sample(logits, [0]) == calm.sample(logits, [0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_every_token_masked_fails_alone(sampler_of, temperature):
    sampler = sampler_of(4, 2, "cpu")
    sampler.start(start(0, temperature=temperature, bad_words_ids=((3, 2),), allowed_token_ids=(2,)))
    sampler.start(start(1, temperature=temperature, allowed_token_ids=(2,)))
    answer = sampler.sample(torch.zeros(2, 4), [0, 1])
    assert answer.token_ids == [None, 2]
    assert answer.errors == {
        0: "No token can be chosen for position 3: the request's masks, biases and penalties leave no finite "
        "largest logit."
    }


def test_tokens_the_model_itself_rules_out_are_no_error(sampler_of):
    logits = torch.tensor([[-math.inf, 1.0, -math.inf]])
    sampler = sampler_of(3, 1, "cpu")
    sampler.start(start(0, logprobs=True, top_logprobs=3))
    answer = sampler.sample(logits, [0])
    assert answer.token_ids == [1]
    assert answer.logprobs[0].top == ((1, 0.0),)


def test_logprobs_are_of_the_raw_distribution(sampler_of):
    logits = coarse_logits(8, 1, 2500)
    sampler = sampler_of(2500, 1, "cpu")
    sampler.start(start(0, temperature=0.3, top_k=5, logit_bias={9: 20.0}, logprobs=True, top_logprobs=6))
    answer = sampler.sample(logits, [0])
    expected = logits[0].double().log_softmax(-1)
    assert answer.token_ids == [9]
    assert answer.logprobs[0].logprob == pytest.approx(expected[9].item(), abs=1e-6)
    order = torch.sort(logits[0], descending=True, stable=True).indices[:6].tolist()
    assert [token for token, _ in answer.logprobs[0].top] == order
    assert [value for _, value in answer.logprobs[0].top] == pytest.approx(expected[order].tolist(), abs=1e-6)


def test_logprobs_only_as_many_as_asked(sampler_of):
    sampler = sampler_of(30, 3, "cpu")
    sampler.start(start(0, logprobs=True, top_logprobs=2))
    sampler.start(start(1, logprobs=True))
    sampler.start(start(2))
    logprobs = sampler.sample(coarse_logits(0, 3, 30), [0, 1, 2]).logprobs
    assert {seq: len(answer.top) for seq, answer in logprobs.items()} == {0: 2, 1: 0}


def test_token_logprobs_of_given_tokens(sampler_of):
    logits = coarse_logits(2, 40, 700)
    tokens = list(range(40))
    sampler = sampler_of(700, 1, "cpu")
    expected = logits.double().log_softmax(-1)
    answers = sampler.token_logprobs(logits, tokens, 3)
    assert [answer.logprob for answer in answers] == pytest.approx(
        [expected[at, at].item() for at in tokens], abs=1e-6
    )
    for at, answer in enumerate(answers):
        assert [token for token, _ in answer.top] == torch.sort(
            logits[at], descending=True, stable=True
        ).indices[:3].tolist()
    assert all(answer.top == () for answer in sampler.token_logprobs(logits, tokens, 0))
    assert sampler.token_logprobs(logits[:0], [], 3) == []


def test_token_logprobs_of_a_row_that_is_not_finite(sampler_of):
    logits = torch.zeros(2, 4)
    logits[0, 1] = math.nan
    bad, good = sampler_of(4, 1, "cpu").token_logprobs(logits, [0, 0], 2)
    assert math.isnan(bad.logprob)
    assert bad.top == ()
    assert good.logprob == pytest.approx(math.log(0.25))


def test_end_of_sequence_waits_for_the_minimal_length(sampler_of):
    logits = torch.tensor([[0.0, 1.0, 5.0]])
    sampler = sampler_of(3, 1, "cpu")
    sampler.start(start(0, temperature=0.0, eos=[2, 99], min_output=2))
    assert [sampler.sample(logits, [0]).token_ids[0] for _ in range(4)] == [1, 1, 2, 2]


def test_penalties_see_what_was_chosen(sampler_of):
    logits = torch.tensor([[3.0, 2.5, 2.0]])
    sampler = sampler_of(3, 1, "cpu")
    sampler.start(start(0, prompt=(0,), temperature=0.0, presence_penalty=2.0))
    assert [sampler.sample(logits, [0]).token_ids[0] for _ in range(3)] == [0, 1, 2]


def test_logits_are_left_unchanged(sampler_of):
    logits = coarse_logits(4, len(KINDS), 200)
    before = logits.clone()
    sampler = sampler_of(200, len(KINDS), "cpu")
    for seq, kind in enumerate(KINDS):
        sampler.start(start(seq, **kind))
    sampler.sample(logits, range(len(KINDS)))
    assert torch.equal(logits, before)


def test_a_strided_view_gives_the_same_as_a_copy(sampler_of):
    logits = coarse_logits(4, 3000, 4).t()
    first, second = sampler_of(3000, 4, "cpu"), sampler_of(3000, 4, "cpu")
    for sampler in (first, second):
        for seq in range(4):
            sampler.start(start(seq, logprobs=True, top_logprobs=4, **KINDS[seq + 4]))
    assert first.sample(logits, range(4)) == second.sample(logits.contiguous(), range(4))


def test_an_id_is_used_again_after_it_was_retired(sampler_of):
    row = coarse_logits(0, 1, 100)
    sampler, fresh = sampler_of(100, 1, "cpu"), sampler_of(100, 1, "cpu")
    sampler.start(start(0, seed=3, repetition_penalty=2.0, allowed_token_ids=(1, 2), logprobs=True))
    sampler.sample(row, [0])
    sampler.retire(0)
    sampler.start(start(0, seed=4, temperature=2.0))
    fresh.start(start(0, seed=4, temperature=2.0))
    assert sampler.sample(row, [0]) == fresh.sample(row, [0])


def test_best_on_a_device_is_best_on_the_host(make_token_sampler):
    logits = coarse_logits(6, 20, 5000)
    logits[3, 40] = math.nan
    logits[4] = -math.inf
    ids, peaks = best_on_device(logits)
    host_ids, host_peaks = make_token_sampler(logits.shape[1]).best(logits.numpy())
    np.testing.assert_array_equal(ids, host_ids)
    np.testing.assert_array_equal(peaks, host_peaks)


def test_logits_from_a_device_give_the_same(sampler_of):
    # Only the kind of device is looked at, so a tensor on the host can stand in for one that is not.
    count, vocab = len(KINDS), 400
    logits = coarse_logits(11, count, vocab)
    logits[[2, 13], 5] = math.nan
    away, host = sampler_of(vocab, count, "cuda"), sampler_of(vocab, count, "cpu")
    for seq in range(count):
        for sampler in (away, host):
            sampler.start(start(seq, seed=seq, **KINDS[seq]))
    for _ in range(2):
        assert away.sample(logits, range(count)) == host.sample(logits, range(count))
    greedy = [0, 3]
    assert away.sample(logits[greedy], greedy) == host.sample(logits[greedy], greedy)


def test_starting_a_live_id_replaces_its_sequence(sampler_of):
    row = coarse_logits(0, 1, 100)
    sampler, fresh = sampler_of(100, 1, "cpu"), sampler_of(100, 1, "cpu")
    sampler.start(start(0, seed=3, repetition_penalty=2.0, allowed_token_ids=(1, 2), logprobs=True))
    sampler.sample(row, [0])
    sampler.start(start(0, prompt=(4, 5), seed=4, temperature=2.0))
    fresh.start(start(0, prompt=(4, 5), seed=4, temperature=2.0))
    assert sampler.sample(row, [0]) == fresh.sample(row, [0])


def test_a_start_that_is_refused_changes_nothing(sampler_of):
    row = coarse_logits(0, 1, 100)
    sampler, calm = sampler_of(100, 1, "cpu"), sampler_of(100, 1, "cpu")
    for each in (sampler, calm):
        each.start(start(0, seed=3, temperature=2.0))
    with pytest.raises(InvalidArgument, match="bad_words_ids"):
        sampler.start(start(0, seed=4, temperature=0.0, bad_words_ids=((100,),)))
    assert sampler.sample(row, [0]) == calm.sample(row, [0])


def test_retiring_an_id_that_is_not_live_does_nothing(sampler_of):
    sampler = sampler_of(10, 2, "cpu")
    sampler.start(start(0))
    sampler.retire(1)
    sampler.retire(0)
    sampler.retire(0)
    with pytest.raises(InvalidArgument, match="seqs is"):
        sampler.sample(torch.zeros(1, 10), [0])


def test_misuse_is_refused(sampler_of):
    sampler = sampler_of(10, 2, "cpu")
    sampler.start(start(0))
    with pytest.raises(InvalidArgument, match="seq is 2"):
        sampler.start(start(2))
    with pytest.raises(InvalidArgument, match="bad_words_ids is 10; allowed: token ids from 0 to 9"):
        sampler.start(start(1, bad_words_ids=((3, 10),)))
    for seq in (-1, 2):
        with pytest.raises(InvalidArgument, match="allowed: an id from 0 to 1"):
            sampler.retire(seq)
    for seqs in ([1], [0, 0], [-2], [5]):
        with pytest.raises(InvalidArgument, match="seqs is"):
            sampler.sample(torch.zeros(len(seqs), 10), seqs)
    with pytest.raises(InvalidArgument, match="shape"):
        sampler.sample(torch.zeros(1, 9), [0])
    with pytest.raises(InvalidArgument, match="dtype"):
        sampler.sample(torch.zeros(1, 10, dtype=torch.bfloat16), [0])
    with pytest.raises(InvalidArgument, match="token_ids"):
        sampler.token_logprobs(torch.zeros(1, 10), [10], 0)
    with pytest.raises(InvalidArgument, match="vocab_size"):
        sampler_of(2**20 + 1, 1, "cpu")
    assert sampler.sample(torch.zeros(0, 10), []).token_ids == []
