"""What all engines are asked is the same everywhere and for ever."""

import hashlib
import json
from dataclasses import asdict

import pytest

from millstream.benchmarks.compare.workloads import LEVEL_WORKLOADS, WORKLOADS, Lengths, make_workloads
from millstream.errors import InvalidArgument

VOCAB_SIZE = 151936
SMALL = Lengths(
    at_once=6,
    input_len=24,
    output_len=5,
    mixed=9,
    mixed_in_flight=3,
    mixed_input=(4, 20),
    mixed_output=(2, 7),
    shared_len=16,
    shared_output_len=3,
)


def test_the_published_workloads_never_change() -> None:
    workloads = make_workloads(VOCAB_SIZE)
    asked = [[asdict(request) for request in workloads[name].requests] for name in WORKLOADS]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    assert digest == "56d0c1953cd839f167d594adf4a59db05b41a331719440ddb5f766e5b14a1944"


def test_lengths_are_those_of_the_descriptions() -> None:
    workloads = make_workloads(VOCAB_SIZE)
    assert tuple(workloads) == (*WORKLOADS, *LEVEL_WORKLOADS)
    w1, w2, w3, w4 = (workloads[name] for name in ("w1", "w2", "w3", "w4-warm"))
    assert {(len(one.token_ids), one.output_len) for one in w1.requests} == {(512, 128)}
    assert (len(w1.requests), w1.in_flight, w1.max_length) == (64, 64, 640)
    assert (w2.requests, w2.in_flight) == (w1.requests[:1], 1)
    assert (len(w3.requests), w3.in_flight) == (96, 32)
    assert all(32 <= len(one.token_ids) <= 768 and 16 <= one.output_len <= 192 for one in w3.requests)
    assert len({len(one.token_ids) for one in w3.requests}) > 48
    assert {(len(one.token_ids), one.output_len) for one in w4.requests} == {(512, 32)}
    ids = {token for workload in workloads.values() for one in workload.requests for token in one.token_ids}
    assert min(ids) >= 16 and max(ids) < VOCAB_SIZE


@pytest.mark.parametrize("level", [1, 8, 32, 64])
def test_a_level_asks_for_its_prompts_alone_and_for_outputs_after_them(level: int) -> None:
    workloads = make_workloads(VOCAB_SIZE)
    prefill, decode = workloads[f"prefill-{level}"], workloads[f"decode-{level}"]
    assert (len(prefill.requests), prefill.in_flight, decode.in_flight) == (level, level, level)
    assert {(len(one.token_ids), one.output_len) for one in prefill.requests} == {(512, 1)}
    assert {(len(one.token_ids), one.output_len) for one in decode.requests} == {(512, 32)}
    assert [one.token_ids for one in prefill.requests] == [one.token_ids for one in decode.requests]
    assert len(prefill.warmup) <= level and prefill.prefix_cache is decode.prefix_cache is None


def test_prompts_that_share_their_beginning_share_no_more() -> None:
    workloads = make_workloads(VOCAB_SIZE, SMALL)
    warm, cold, off = (workloads[f"w4-{how}"] for how in ("warm", "cold", "off"))
    assert warm.requests == cold.requests == off.requests
    everybody = [*warm.requests, *warm.earlier]
    assert len(everybody) == 7 and cold.earlier == off.earlier == []
    assert len({tuple(one.token_ids[:16]) for one in everybody}) == 1
    assert len({tuple(one.token_ids[16:]) for one in everybody}) == 7
    assert [warm.prefix_cache, cold.prefix_cache, off.prefix_cache] == [True, True, False]


def test_a_warm_up_fills_no_cache_for_what_is_measured() -> None:
    for workload in make_workloads(VOCAB_SIZE).values():
        beginnings = {tuple(one.token_ids[:4]) for one in workload.requests}
        assert workload.warmup and beginnings.isdisjoint(tuple(one.token_ids[:4]) for one in workload.warmup)


def test_a_share_is_the_first_of_the_requests() -> None:
    whole = make_workloads(VOCAB_SIZE, SMALL)["w3"]
    assert whole.scaled(1.0) == whole
    assert whole.scaled(0.34).requests == whole.requests[:3]
    assert whole.scaled(0.001).requests == whole.requests[:1]
    assert (whole.scaled(0.34).in_flight, whole.scaled(0.34).warmup) == (whole.in_flight, whole.warmup)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_no_share_at_all_is_refused(share: float) -> None:
    with pytest.raises(InvalidArgument, match="above 0, at most 1"):
        make_workloads(VOCAB_SIZE, SMALL)["w1"].scaled(share)


def test_a_vocabulary_without_plain_tokens_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="vocab_size is 16; allowed: above 16"):
        make_workloads(16)
