"""Scheduler over the fake worker: random lives of requests, and each rule by itself."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from millstream.backends.fake import FakeWorker
from millstream.backends.worker import Adapter, WorkerSpec
from millstream.errors import InvalidArgument
from millstream.kvcache import KVCache, root_digest
from millstream.scheduler import (
    Eviction,
    FinishReason,
    Policy,
    Pooling,
    Request,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    StepResult,
    Wants,
)

BLOCK = 4


class Harness:
    """One scheduler, one fake worker and a clock that the test turns."""

    def __init__(
        self,
        *,
        num_blocks=64,
        prefix_cache=True,
        ttl=None,
        within_step=True,
        chunks_prompts=True,
        mixes_adapters=True,
        **config,
    ):
        config = {"max_num_seqs": 4, "max_num_batched_tokens": 16, **config}
        self.kv = KVCache(num_blocks, BLOCK, enable_prefix_cache=prefix_cache, ttl=ttl)
        self.scheduler = Scheduler(
            SchedulerConfig(**config),
            self.kv,
            shares_within_step=within_step,
            chunks_prompts=chunks_prompts,
            mixes_adapters=mixes_adapters,
        )
        self.abilities = {"chunks_prompts": chunks_prompts, "mixes_adapters": mixes_adapters}
        self.worker = self.new_worker(num_blocks, config["max_num_seqs"])
        self.within_step = within_step
        self.now = 0.0
        self.ids = 0
        self.finished = []
        self.batches = []

    def new_worker(self, num_blocks, max_num_seqs, block_size=BLOCK):
        worker = FakeWorker(
            WorkerSpec(
                vocab_size=97,
                max_length=10_000,
                block_size=block_size,
                num_blocks=num_blocks,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=1 << 30,
                **self.abilities,
            )
        )
        for name in "xy":
            worker.load_adapter(Adapter(name=name, path=Path(name)), None)
        return worker

    def add(self, prompt, *, tokens=8, params=None, leader=None, salt="", adapter=None, **kwargs):
        self.ids += 1
        params = params or SamplingParams(temperature=0)
        request = Request(
            self.ids,
            list(prompt),
            params,
            seed=self.ids if params.seed is None else params.seed,
            max_tokens=len(prompt) + tokens,
            cache_root=root_digest(salt=salt, adapter=adapter or ""),
            arrival_time=self.now,
            leader=leader,
            adapter=adapter,
            **kwargs,
        )
        self.scheduler.add(request)
        return request

    def step(self):
        batch = self.scheduler.schedule(self.now)
        if batch is not None:
            if not self.within_step:
                self.check_no_reading_of_what_this_step_writes(batch)
            result = self.worker.execute(batch)
            self.scheduler.update(batch, result, self.now)
            self.batches.append(batch)
        self.finished += self.scheduler.take_finished()
        return batch

    @staticmethod
    def check_no_reading_of_what_this_step_writes(batch):
        written = {}
        for chunk in batch.chunks:
            for position in range(chunk.start, chunk.start + len(chunk.tokens)):
                written.setdefault(chunk.blocks[position // BLOCK], set()).add(chunk.seq)
        for chunk in batch.chunks:
            for block in chunk.blocks[: chunk.start // BLOCK]:
                assert written.get(block, {chunk.seq}) == {chunk.seq}

    def run(self, limit=10_000):
        for _ in range(limit):
            if not self.scheduler.has_work:
                self.finished += self.scheduler.take_finished()
                return
            self.step()
        raise AssertionError("requests are starved")


def alone(prompt, count, params=None, seed=0, eos=(), **kwargs):
    """The request, as it ends with a worker of its own."""
    harness = Harness(num_blocks=4096, max_num_seqs=1, max_num_batched_tokens=4096)
    params = params or SamplingParams(temperature=0)
    harness.ids = seed - 1
    request = harness.add(prompt, tokens=count, params=params, eos_token_ids=eos, **kwargs)
    harness.run()
    return request


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, steps, cancels, times out, fails; then everything left must finish with the right tokens."""

    @initialize(
        policy=st.sampled_from(Policy),
        eviction=st.sampled_from(Eviction),
        num_blocks=st.integers(6, 24),
        budget=st.sampled_from([4, 7, 16, 64]),
        prefix_cache=st.booleans(),
        ttl=st.sampled_from([None, 20.0]),
        within_step=st.booleans(),
        mixes_adapters=st.booleans(),
    )
    def begin(self, policy, eviction, num_blocks, budget, prefix_cache, ttl, within_step, mixes_adapters):
        self.h = Harness(
            num_blocks=num_blocks,
            policy=policy,
            eviction=eviction,
            max_num_batched_tokens=budget,
            prefix_cache=prefix_cache,
            ttl=ttl,
            within_step=within_step,
            mixes_adapters=mixes_adapters,
        )
        self.requests = []
        self.started = {}

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=22),
        tokens=st.integers(1, 20),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from("ab"),
        deadline=st.one_of(st.none(), st.floats(1, 60)),
        queue_timeout=st.one_of(st.none(), st.floats(1, 30)),
        temperature=st.sampled_from([0.0, 1.0]),
        samples=st.integers(1, 3),
        prompt_logprobs=st.sampled_from([None, None, 0]),
        adapter=st.sampled_from([None, None, "x", "y"]),
        pooling=st.sampled_from([None, None, None, *Pooling]),
    )
    def add(
        self,
        prompt,
        tokens,
        priority,
        tenant,
        deadline,
        queue_timeout,
        temperature,
        samples,
        prompt_logprobs,
        adapter,
        pooling,
    ):
        leader = None
        for _ in range(samples):
            request = self.h.add(
                prompt,
                tokens=tokens,
                params=SamplingParams(temperature=temperature, prompt_logprobs=prompt_logprobs),
                priority=priority,
                tenant=tenant,
                deadline=None if deadline is None else self.h.now + deadline,
                queue_deadline=None if queue_timeout is None else self.h.now + queue_timeout,
                eos_token_ids=(5, 11),
                leader=leader,
                adapter=adapter,
                pooling=pooling,
            )
            leader = leader or request
            self.requests.append(request)

    @rule(steps=st.integers(1, 6))
    def step(self, steps):
        for _ in range(steps):
            self.h.step()
            self.h.scheduler.check_integrity()

    @rule(data=st.data())
    def step_of_a_worker_short_of_room(self, data):
        batch = self.h.scheduler.schedule(self.h.now)
        if batch is None:
            return
        seqs = [chunk.seq for chunk in batch.chunks]
        # With sharing inside a step, others may read what an unplaced chunk was to write.
        most = 0 if self.h.within_step else len(seqs)
        unplaced = frozenset(data.draw(st.lists(st.sampled_from(seqs), max_size=most)))
        result = self.h.worker.execute(batch)
        token_ids = [
            None if seq in unplaced else token for seq, token in zip(seqs, result.token_ids, strict=True)
        ]
        held = {block for chunk in batch.chunks for block in chunk.blocks}
        lost = [block for block in range(self.h.kv.num_blocks) if block not in held and block % 2]
        lost = [block for block in lost if self.h.kv._pool.is_free(block)]
        for block in lost:
            self.h.worker._slots[block * BLOCK : (block + 1) * BLOCK] = [-1] * BLOCK
        result = StepResult(
            token_ids, embeddings=result.embeddings, unplaced=unplaced, lost_blocks=tuple(lost)
        )
        self.h.scheduler.update(batch, result, self.h.now)

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds):
        self.h.now += seconds
        self.h.scheduler.expire(self.h.now)
        deadline = self.h.scheduler.next_deadline()
        assert deadline is None or deadline > self.h.now

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data):
        request = data.draw(st.sampled_from(self.requests))
        self.h.scheduler.finish(request, FinishReason.CANCELLED, self.h.now)
        assert request.finished

    @rule()
    def fail(self):
        batch = self.h.scheduler.schedule(self.h.now)
        if batch is not None:
            self.h.scheduler.fail(batch, "lost", self.h.now)
            self.h.worker = self.h.new_worker(self.h.kv.num_blocks, 4)

    @invariant()
    def everything_is_accounted_for(self):
        if hasattr(self, "h"):
            self.h.scheduler.check_integrity()

    def teardown(self):
        if not hasattr(self, "h"):
            return
        self.h.run()
        assert sorted(r.request_id for r in self.h.finished) == sorted(r.request_id for r in self.requests)
        stats = self.h.kv.stats()
        assert stats.held_blocks == 0
        for request in self.requests:
            output = request.token_ids[request.num_prompt_tokens :]
            expected = alone(
                request.token_ids[: request.num_prompt_tokens],
                request.max_tokens - request.num_prompt_tokens,
                request.params,
                request.request_id,
                eos=(5, 11),
                adapter=request.adapter,
                pooling=request.pooling,
            )
            expected_output = expected.token_ids[request.num_prompt_tokens :]
            assert output == expected_output[: len(output)]
            if request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert output == expected_output
                assert request.embedding == expected.embedding
                assert (request.embedding is None) == (request.pooling is None)


SchedulerMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)
TestSchedulerMachine = SchedulerMachine.TestCase


def test_a_chunk_leaves_room_for_every_decode_behind_it():
    h = Harness(max_num_batched_tokens=8)
    decoding = [h.add([1, 2], tokens=30, priority=1) for _ in range(3)]
    h.step()
    long = h.add([3] * 60, priority=0)
    for _ in range(20):
        before = [len(request.token_ids) for request in decoding]
        h.step()
        assert [len(request.token_ids) for request in decoding] == [n + 1 for n in before]
        assert h.batches[-1].num_tokens <= 8
    assert long.num_output_tokens > 0


def test_preemption_takes_the_lowest_priority_then_the_latest():
    h = Harness(num_blocks=7)
    important = h.add([1] * 8, tokens=16, priority=-1)
    early = h.add([2] * 4, tokens=16)
    late = h.add([3] * 4, tokens=16)
    h.run()
    assert important.num_preemptions == 0
    assert late.num_preemptions > 0
    assert late.num_preemptions >= early.num_preemptions
    assert all(r.finish_reason is FinishReason.LENGTH for r in (important, early, late))
    assert h.scheduler.stats().preemptions == early.num_preemptions + late.num_preemptions


def test_longest_is_preempted_when_asked():
    h = Harness(num_blocks=7, eviction=Eviction.MAX_LENGTH)
    long = h.add([1] * 12, tokens=12)
    short = h.add([2] * 4, tokens=12)
    h.run()
    assert long.num_preemptions > 0
    assert short.num_preemptions == 0


def test_a_request_larger_than_the_pool_is_interrupted_with_its_tokens():
    h = Harness(num_blocks=3)
    request = h.add([1] * 6, tokens=100)
    other = h.add([2] * 4, tokens=2)
    h.run()
    assert request.finish_reason is FinishReason.INTERRUPTED
    assert len(request.token_ids) == 3 * BLOCK + 1
    assert other.finish_reason is FinishReason.LENGTH


def test_deadlines_end_requests_in_the_queue_and_in_flight():
    h = Harness(max_num_seqs=1)
    running = h.add([1], tokens=1000, deadline=5.0)
    waiting = h.add([1], queue_deadline=3.0)
    h.step()
    assert h.scheduler.next_deadline() == 3.0
    h.now = 3.0
    h.scheduler.expire(h.now)
    assert waiting.finish_reason is FinishReason.QUEUE_TIMEOUT
    assert not running.finished
    h.now = 5.0
    h.scheduler.expire(h.now)
    assert running.finish_reason is FinishReason.TIMEOUT
    assert not h.scheduler.has_work
    assert h.kv.stats().held_blocks == 0


def test_fair_policy_serves_the_tenant_that_got_least():
    h = Harness(max_num_seqs=1, policy=Policy.FAIR, num_blocks=256, max_num_batched_tokens=64)
    heavy = [h.add([1] * 20, tokens=10, tenant="heavy") for _ in range(6)]
    light = h.add([2], tokens=2, tenant="light")
    h.run()
    order = [request.request_id for request in h.finished]
    assert order.index(light.request_id) == 1
    assert len(order) == len(heavy) + 1


def test_fair_policy_keeps_priorities_within_a_tenant():
    h = Harness(max_num_seqs=1, policy=Policy.FAIR)
    blocker = h.add([1] * 8, tokens=1, tenant="ann")
    h.step()
    for priority in (2, -5, 1):
        h.add([1], tokens=1, tenant="ann", priority=priority)
    h.add([1], tokens=1, tenant="bob", priority=9)
    h.run()
    assert h.finished[0] is blocker
    # bob starts even with ann, who waited already; then it is his turn, whatever ann's priorities are.
    order = [(request.tenant, request.priority) for request in h.finished[1:]]
    assert order == [("ann", -5), ("bob", 9), ("ann", 1), ("ann", 2)]


def test_priority_policy_admits_lower_numbers_first():
    h = Harness(max_num_seqs=1, policy=Policy.PRIORITY)
    requests = [h.add([1], tokens=1, priority=p) for p in (2, 0, 1)]
    h.run()
    assert [r.priority for r in h.finished] == [0, 1, 2]
    assert all(r.finish_reason is FinishReason.LENGTH for r in requests)


def test_samples_share_the_blocks_of_their_prompt_without_a_prefix_cache():
    h = Harness(prefix_cache=False, num_blocks=16)
    leader = h.add([1] * 21, tokens=4)
    others = [h.add([1] * 21, tokens=4, leader=leader) for _ in range(2)]
    h.step()
    h.step()
    assert not leader.finished
    h.step()
    assert all(other.table.blocks[:5] == leader.table.blocks[:5] for other in others)
    assert all(other.num_cached_tokens == 20 for other in others)
    h.run()


def test_a_follower_goes_on_when_its_leader_is_cancelled_in_the_queue():
    h = Harness(max_num_seqs=1)
    h.add([9], tokens=3)
    leader = h.add([1] * 9, tokens=4)
    follower = h.add([1] * 9, tokens=4, leader=leader)
    h.step()
    h.scheduler.finish(leader, FinishReason.CANCELLED, h.now)
    h.run()
    assert follower.finish_reason is FinishReason.LENGTH


def test_equal_prompts_in_one_step_are_computed_once():
    h = Harness(max_num_batched_tokens=64)
    for _ in range(4):
        h.add([1] * 17, tokens=2)
    batch = h.step()
    assert [len(chunk.tokens) for chunk in batch.chunks] == [17, 1, 1, 1]
    assert h.kv.stats().hit_tokens == 48


def test_generated_blocks_are_matched_by_the_next_turn():
    h = Harness()
    first = h.add([1] * 6, tokens=7)
    h.run()
    second = h.add([*first.token_ids, 3, 3], tokens=2)
    h.run()
    assert second.num_cached_tokens == 12


def test_stop_token_stop_word_and_minimum_length():
    expected = alone([1, 2, 3], 12).token_ids[3:]
    h = Harness()
    params = SamplingParams(temperature=0, stop_token_ids=(expected[4],))
    by_token = h.add([1, 2, 3], tokens=12, params=params)
    words = SamplingParams(temperature=0, stop_words_ids=((expected[5], expected[6]),))
    by_word = h.add([1, 2, 3], tokens=12, params=words)
    late = SamplingParams(temperature=0, stop_token_ids=(expected[4],), min_new_tokens=6)
    not_yet = h.add([1, 2, 3], tokens=12, params=late)
    h.run()
    first = expected.index(expected[4])
    assert by_token.token_ids[3:] == expected[: first + 1]
    assert by_token.stop_cause == expected[4]
    assert by_word.finish_reason is FinishReason.STOP
    assert by_word.token_ids[-2:] == expected[5:7]
    assert not_yet.num_output_tokens >= 6


def test_a_failed_step_is_repeated_one_request_at_a_time_and_only_the_guilty_ends():
    h = Harness()
    requests = [h.add([n] * 5, tokens=4) for n in range(3)]
    guilty = requests[1]

    def execute(batch):
        if any(h.scheduler._by_seq[chunk.seq] is guilty for chunk in batch.chunks):
            h.scheduler.fail(batch, "it breaks the worker", h.now)
            h.worker = h.new_worker(64, 4)
            return
        h.scheduler.update(batch, h.worker.execute(batch), h.now)

    for _ in range(100):
        batch = h.scheduler.schedule(h.now)
        if batch is None:
            break
        execute(batch)
        h.scheduler.check_integrity()
    assert guilty.finish_reason is FinishReason.ERROR
    assert guilty.error == "it breaks the worker"
    for request in (requests[0], requests[2]):
        assert request.finish_reason is FinishReason.LENGTH
        assert request.token_ids[5:] == alone(request.token_ids[:5], 4).token_ids[5:]


def test_a_sequence_error_ends_that_request_alone():
    h = Harness()
    bad, good = h.add([1], tokens=3), h.add([2], tokens=3)
    batch = h.scheduler.schedule(0.0)
    result = h.worker.execute(batch)
    result.token_ids[0] = None
    result.errors[batch.chunks[0].seq] = "logits are not finite"
    h.scheduler.update(batch, result, 0.0)
    h.run()
    assert bad.finish_reason is FinishReason.ERROR
    assert bad.error == "logits are not finite"
    assert good.finish_reason is FinishReason.LENGTH


def test_only_the_last_chunk_wants_a_token():
    h = Harness(max_num_batched_tokens=4, max_num_seqs=1)
    h.add([1] * 10, tokens=1)
    wants = [h.step().chunks[0].wants for _ in range(3)]
    assert wants == [Wants.NOTHING, Wants.NOTHING, Wants.TOKEN]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_num_seqs", 0, "1 or more"),
        ("max_num_batched_tokens", 3, "at least max_num_seqs"),
        ("max_queued_tokens", True, "None"),
        ("policy", "fcfs", "one of"),
    ],
)
def test_config_names_what_is_wrong(field, value, allowed):
    with pytest.raises(InvalidArgument, match=allowed):
        SchedulerConfig(**{field: value})


def test_an_embedding_ends_its_request_without_a_token():
    h = Harness()
    request = h.add([1] * 40, pooling=Pooling.MEAN)
    h.run()
    assert request.finish_reason is FinishReason.STOP
    assert request.num_output_tokens == 0
    assert request.embedding == alone([1] * 40, 8, pooling=Pooling.MEAN).embedding
    assert request.embedding != alone([1] * 40, 8, pooling=Pooling.LAST).embedding
    assert len(h.batches) > 1


@pytest.mark.parametrize(
    ("pooling", "cached"), [(Pooling.LAST, 36), (Pooling.MEAN, 0), (Pooling.CLS, 0)], ids=str
)
def test_only_the_last_state_can_be_computed_behind_a_cached_prefix(pooling, cached):
    h = Harness()
    h.add([1] * 40)
    h.run()
    request = h.add([1] * 40, pooling=pooling)
    h.run()
    assert request.num_cached_tokens == cached
    assert request.embedding == alone([1] * 40, 8, pooling=pooling).embedding


def test_a_prompt_that_must_come_whole_waits_for_a_step_of_its_own():
    h = Harness(chunks_prompts=False)
    requests = [h.add([n] * length, pooling=Pooling.MEAN) for n, length in enumerate([9, 9, 5, 16, 1])]
    h.run()
    assert all(request.finish_reason is FinishReason.STOP for request in requests)
    assert [[len(chunk.tokens) for chunk in batch.chunks] for batch in h.batches] == [[9], [9, 5], [16], [1]]


def test_adapters_that_cannot_mix_take_turns():
    h = Harness(mixes_adapters=False)
    requests = [h.add([n] * 6, tokens=6, adapter=name) for n, name in enumerate([None, "x", "y", None])]
    adapter_of = {}
    served = []
    while h.scheduler.has_work:
        batch = h.step()
        adapter_of |= {start.seq: start.adapter for start in batch.started}
        (adapter,) = {adapter_of[chunk.seq] for chunk in batch.chunks}
        served.append(adapter)
    assert {request.finish_reason for request in requests} == {FinishReason.LENGTH}
    assert served[:2] == [None, "x"]
    for start in range(3, len(served) - 6, 3):
        assert set(served[start : start + 3]) == {None, "x", "y"}


def test_a_turn_for_which_there_is_no_room_is_another_adapters():
    h = Harness(mixes_adapters=False, num_blocks=6, prefix_cache=False)
    running = h.add([1] * 8, tokens=12)
    h.step()
    waiting = h.add([2] * 16, tokens=2, adapter="x")
    for _ in range(5):
        assert h.step() is not None
    assert running.num_output_tokens == 6
    h.run()
    assert waiting.finish_reason is FinishReason.LENGTH


def test_equal_prompts_under_two_adapters_share_nothing():
    h = Harness()
    h.add([1] * 20, adapter="x")
    h.run()
    other = h.add([1] * 20, adapter="y")
    same = h.add([1] * 20, adapter="x")
    h.run()
    assert other.num_cached_tokens == 0
    assert same.num_cached_tokens == 16
