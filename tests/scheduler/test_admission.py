"""What may be queued: sizes, and bounds on requests and tokens."""

import itertools

import pytest

from millstream.errors import LimitExceeded, QueueFull
from millstream.scheduler import Admission, Pooling, Request, SamplingParams, SchedulerConfig

IDS = itertools.count()


def request(length, **kwargs):
    params = SamplingParams(max_new_tokens=1)
    return Request(next(IDS), [1] * length, params, seed=0, max_tokens=length + 1, cache_root=b"", **kwargs)


def admission(capacity=12, chunks_prompts=True, **config):
    return Admission(SchedulerConfig(**config), capacity, chunks_prompts=chunks_prompts)


def test_prompts_that_no_pool_or_step_can_hold_are_refused():
    with pytest.raises(LimitExceeded, match="12 tokens; the block pool holds 12"):
        admission().check([request(12)])
    admission().check([request(11)])
    admission().check([request(12, pooling=Pooling.MEAN)])
    with pytest.raises(LimitExceeded, match="12 tokens; the block pool holds 12"):
        admission().check([request(1), request(12)])
    whole = admission(100, chunks_prompts=False, max_num_batched_tokens=64)
    whole.check([request(64, pooling=Pooling.MEAN)])
    with pytest.raises(LimitExceeded, match=r"65 tokens.*at most 64 \(max_num_batched_tokens\)"):
        whole.check([request(65, pooling=Pooling.MEAN)])


def test_full_queues_are_refused_with_the_time_to_retry():
    bounded = admission(max_queued_requests=2, max_queued_tokens=20)
    first, second = request(10), request(2)
    bounded.enter([first])
    with pytest.raises(QueueFull, match=r"10 prompt tokens are queued and 11 more .* at most 20") as caught:
        bounded.check([request(11)], retry_after=2.5)
    assert caught.value.retry_after == 2.5
    with pytest.raises(QueueFull, match="2 requests are queued; at most 2"):
        bounded.check([request(1)], pending_requests=1)
    with pytest.raises(QueueFull, match="19 prompt tokens are queued and 2 more"):
        bounded.check([request(2)], pending_tokens=9)
    bounded.enter([second])
    with pytest.raises(QueueFull, match="2 requests are queued"):
        bounded.check([request(1)])
    bounded.leave(first)
    bounded.check([request(1)])


def test_what_was_asked_for_at_once_counts_as_one_until_all_of_it_has_begun():
    bounded = admission(max_queued_requests=1)
    inputs = [request(3) for _ in range(2048)]
    bounded.check(inputs)
    bounded.enter(inputs)
    assert (bounded.num_queued, bounded.queued_tokens) == (1, 3 * 2048)
    for number, each in enumerate(inputs):
        bounded.check_integrity(inputs[number:])
        with pytest.raises(QueueFull):
            bounded.check([request(1)])
        bounded.leave(each)
        if number == 3:
            break
    for each in inputs[4:]:
        bounded.leave(each)
    assert (bounded.num_queued, bounded.queued_tokens) == (0, 0)
    bounded.check([request(1)])


def test_an_empty_queue_takes_more_tokens_than_its_bound_at_once():
    bounded = admission(100, max_queued_tokens=20)
    inputs = [request(10) for _ in range(3)]
    bounded.check(inputs)
    bounded.enter(inputs)
    with pytest.raises(QueueFull, match="30 prompt tokens are queued and 1 more"):
        bounded.check([request(1)])
