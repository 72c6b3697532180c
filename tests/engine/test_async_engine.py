"""AsyncEngine over the fake worker: life cycle, cancellation, refusals, streaming, failures."""

import asyncio
import random

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import (
    AsyncEngine,
    FinishReason,
    GenerateRequestStatus,
    ModelConfig,
    ModelState,
    Policy,
    SamplingParams,
)
from millstream.errors import (
    InsufficientMemory,
    InvalidArgument,
    LimitExceeded,
    ModelNotFound,
    ModelStateError,
    QueueFull,
    UnknownRequest,
)

from ..waiting import until


def greedy(**kwargs):
    return SamplingParams(temperature=0, **kwargs)


async def read(queue):
    ids, text = [], ""
    async for elements in queue:
        ids += elements.ids_from_generate
        text += elements.text
    return ids, text


async def test_streamed_tokens_and_text_are_those_of_the_request_alone(start_engine):
    rng = random.Random(1)
    prompts = [[rng.randrange(200) for _ in range(rng.randrange(1, 60))] for _ in range(24)]
    alone = []
    async with start_engine(max_num_seqs=1) as engine:
        for prompt in prompts:
            _, queue = engine.start_request_ids("fake", prompt, greedy(max_new_tokens=20))
            alone.append(await read(queue))
    async with start_engine(num_blocks=24, max_length=100) as engine:
        queues = [engine.start_request_ids("fake", p, greedy(max_new_tokens=20))[1] for p in prompts]
        together = await asyncio.gather(*map(read, queues))
        assert engine.get_as_engine_stat("fake").preemptions > 0
    assert together == alone
    assert all(len(text) == len(ids) == 20 for ids, text in alone)


async def test_life_cycle_and_its_refusals():
    async with AsyncEngine() as engine:
        with pytest.raises(ModelNotFound, match=r"'nobody'.*installed: none"):
            await engine.start_model("nobody")
        config = ModelConfig(model="fake", name="m", backend=FakeBackend())
        info = await engine.install_model(config)
        assert info.architecture == "Fake"
        assert engine.model_state("m") is ModelState.INITIAL
        with pytest.raises(ModelStateError, match="installed already"):
            await engine.install_model(config)
        with pytest.raises(ModelStateError, match="requests are taken while it is Running"):
            engine.start_request("m", "x")
        with pytest.raises(ModelStateError, match="is Initial and cannot be stopped; it must be Running"):
            await engine.stop_model("m")
        await engine.start_model("m")
        with pytest.raises(ModelStateError, match="cannot be started"):
            await engine.start_model("m")
        with pytest.raises(ModelStateError, match="cannot be released"):
            await engine.release_model("m")
        await engine.stop_model("m")
        assert engine.model_state("m") is ModelState.STOP
        await engine.start_model("m")
        _, queue = engine.start_request("m", "again", greedy(max_new_tokens=3))
        assert len((await read(queue))[0]) == 3
        await engine.stop_model("m")
        await engine.release_model("m")
        assert engine.models() == []


async def test_several_models_run_at_once():
    async with AsyncEngine() as engine:
        for name, vocab in (("a", 50), ("b", 90)):
            await engine.install_model(ModelConfig(model=name, backend=FakeBackend(vocab_size=vocab)))
        await asyncio.gather(engine.start_model("a"), engine.start_model("b"))
        queues = [engine.start_request(name, "same text", greedy(max_new_tokens=30))[1] for name in "ab"]
        (ids_a, _), (ids_b, _) = await asyncio.gather(*map(read, queues))
        assert max(ids_a) < 50 <= max(ids_b)


async def test_stopping_refuses_new_requests_and_drains(start_engine):
    async with start_engine(FakeBackend(step_time=0.02)) as engine:
        _, queue = engine.start_request("fake", "x", greedy(max_new_tokens=30))
        stopping = asyncio.create_task(engine.stop_model("fake"))
        await until(lambda: engine.model_state("fake") is ModelState.STOPPING)
        with pytest.raises(ModelStateError, match="Stopping"):
            engine.start_request("fake", "y")
        await stopping
        assert queue.finish_reason is FinishReason.LENGTH
        assert queue.GeneratedLength() == 30


async def test_stopping_with_a_timeout_cancels_the_rest(start_engine):
    async with start_engine(FakeBackend(step_time=0.002)) as engine:
        _, queue = engine.start_request("fake", "x", greedy(max_new_tokens=500))
        await engine.stop_model("fake", timeout=0.02)
        assert queue.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("when", ["queued", "prefill", "decode"])
async def test_cancel_frees_blocks_and_disturbs_nobody(start_engine, when, samples):
    # The victim's prompt takes several steps; a full house keeps it queued.
    seats = 1 if when == "queued" else 8
    backend = FakeBackend(vocab_size=200, step_time=0.004)
    async with start_engine(backend, max_num_seqs=seats, max_num_batched_tokens=16) as engine:
        _, expected_queue = engine.start_request("fake", "other", greedy(max_new_tokens=60))
        expected = await read(expected_queue)
        _, other = engine.start_request("fake", "other", greedy(max_new_tokens=60))
        long = "z" * (400 if when == "prefill" else 20)
        handle, victim = engine.start_request("fake", long, greedy(max_new_tokens=90, n=samples))
        if when == "decode":
            await victim.aget()
        elif when == "prefill":
            await until(lambda: engine.get_as_engine_stat("fake").running == 2)
            assert victim.GeneratedLength() == 0
        engine.stop_request("fake", handle)
        await engine.sync_request("fake", handle)
        assert {queue.finish_reason for queue in handle.queues} == {FinishReason.CANCELLED}
        victim.GetNoWait()
        assert victim.GenerateStatus() is GenerateRequestStatus.GenerateInterrupted
        assert (victim.GeneratedLength() > 0) == (when == "decode")
        assert await read(other) == expected
        await engine.sync_request("fake")
        stats = engine.get_as_engine_stat("fake")
        assert stats.held_blocks == 0
        assert stats.running == stats.waiting == 0


async def test_bad_requests_get_one_clear_error_and_others_go_on(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.001), num_blocks=40) as engine:
        _, other = engine.start_request("fake", "other", greedy(max_new_tokens=40))
        ids = engine.start_request_ids
        with pytest.raises(InvalidArgument, match="at least one token"):
            ids("fake", [])
        with pytest.raises(InvalidArgument, match="prompt token id is 200; allowed: integers from 0 to 199"):
            ids("fake", [1, 200])
        with pytest.raises(InvalidArgument, match="prompt token id is -1"):
            ids("fake", [-1])
        with pytest.raises(InvalidArgument, match="prompt token id is 'a'"):
            ids("fake", ["a"])
        with pytest.raises(LimitExceeded, match="512 tokens; 'fake' takes up to 511"):
            ids("fake", [1] * 512)
        with pytest.raises(LimitExceeded, match="max_length is 513"):
            ids("fake", [1], greedy(max_length=513))
        with pytest.raises(LimitExceeded, match="leaves no room"):
            ids("fake", [1] * 20, greedy(max_length=20))
        with pytest.raises(InvalidArgument, match="stop_token_ids is 500"):
            ids("fake", [1], greedy(stop_token_ids=(500,)))
        with pytest.raises(InvalidArgument, match="priority is 'high'"):
            ids("fake", [1], priority="high")
        with pytest.raises(InvalidArgument, match="deadline is -1"):
            ids("fake", [1], deadline=-1)
        with pytest.raises(TypeError, match="unknown option 'prio'"):
            ids("fake", [1], prio=1)
        with pytest.raises(UnknownRequest):
            engine.stop_request("fake", "no handle")
        with pytest.raises(InvalidArgument, match="text is 3"):
            engine.start_request_text("fake", ["fine", 3])
        assert len((await read(other))[0]) == 40
        assert engine.get_as_engine_stat("fake").waiting == 0


async def test_release_forgets_the_handle_but_not_the_tokens(start_engine):
    async with start_engine() as engine:
        handle, queue = engine.start_request("fake", "x", greedy(max_new_tokens=4))
        await engine.sync_request("fake", handle)
        engine.release_request("fake", handle)
        with pytest.raises(UnknownRequest):
            engine.release_request("fake", handle)
        assert len(queue.Get().ids_from_generate) == 4


async def test_full_queue_is_refused_with_a_time_to_retry(start_engine):
    async with start_engine(FakeBackend(step_time=0.005), max_num_seqs=1, max_queued_requests=2) as engine:
        accepted, refused = [], []
        for _ in range(6):
            try:
                accepted.append(engine.start_request("fake", "x" * 40, greedy(max_new_tokens=3)))
            except QueueFull as error:
                refused.append(error)
        assert len(accepted) == 2
        assert all(error.retry_after >= 1.0 for error in refused)
        await engine.sync_request("fake")
        assert all(queue.finish_reason is FinishReason.LENGTH for _, queue in accepted)


async def test_deadlines_have_finish_reasons_of_their_own(start_engine):
    async with start_engine(FakeBackend(step_time=0.01), max_num_seqs=1) as engine:
        _, running = engine.start_request("fake", "x", greedy(max_new_tokens=400), deadline=1.0)
        _, queued = engine.start_request("fake", "x", greedy(max_new_tokens=400), queue_timeout=0.03)
        await engine.sync_request("fake")
        assert running.finish_reason is FinishReason.TIMEOUT
        assert running.GeneratedLength() > 0
        assert queued.finish_reason is FinishReason.QUEUE_TIMEOUT
        assert queued.GeneratedLength() == 0


async def test_samples_differ_by_seed_and_the_first_is_the_request_alone(start_engine):
    async with start_engine() as engine:
        params = SamplingParams(temperature=1, seed=7, max_new_tokens=12)
        _, alone = engine.start_request("fake", "x" * 40, params)
        handle, _ = engine.start_request(
            "fake", "x" * 40, SamplingParams(temperature=1, seed=7, max_new_tokens=12, n=3)
        )
        outputs = [(await read(queue))[0] for queue in handle.queues]
        assert outputs[0] == (await read(alone))[0]
        assert len({tuple(output) for output in outputs}) == 3
        assert handle.queues[2].prefix_cache_len == 32


async def test_prefix_hits_are_reported_and_salts_keep_them_apart(start_engine):
    async with start_engine() as engine:

        async def cached(**options):
            _, queue = engine.start_request("fake", "p" * 50, greedy(max_new_tokens=2), **options)
            await queue.await_finished()
            return queue.Get().prefix_cache_len

        assert await cached() == 0
        assert await cached() == 48
        assert await cached(tenant="a") == 0
        assert await cached(tenant="a") == 48
        assert await cached(tenant="a", cache_salt="own") == 0
        assert await cached(tenant="b", cache_salt="a") == 48


async def test_prompt_logprobs_cover_the_prompt_once_even_after_a_warm_cache(start_engine):
    async with start_engine(max_num_batched_tokens=16) as engine:
        params = greedy(max_new_tokens=2, prompt_logprobs=0)
        for _ in range(2):
            handle, queue = engine.start_request("fake", "p" * 40, params)
            await engine.sync_request("fake", handle)
            assert len(queue.prompt_logprobs) == 40
            assert queue.prompt_logprobs[0] is None
            assert None not in queue.prompt_logprobs[1:]


async def test_only_the_guilty_request_fails_when_the_worker_raises():
    poison = 199

    def on_batch(batch):
        if any(poison in chunk.tokens for chunk in batch.chunks):
            raise RuntimeError("poison")

    backend = FakeBackend(vocab_size=150, on_batch=on_batch)

    class Larger(FakeBackend):
        def inspect(self, name, path):
            import msgspec

            return msgspec.structs.replace(super().inspect(name, path), vocab_size=200)

    backend = Larger(vocab_size=150, on_batch=on_batch)
    async with AsyncEngine() as engine:
        await engine.install_model(ModelConfig(model="fake", backend=backend))
        await engine.start_model("fake")
        _, expected = engine.start_request_ids("fake", [1, 2], greedy(max_new_tokens=20))
        expected = await read(expected)
        good = [engine.start_request_ids("fake", [1, 2], greedy(max_new_tokens=20))[1] for _ in range(3)]
        _, bad = engine.start_request_ids("fake", [1, poison], greedy(max_new_tokens=20))
        assert [await read(queue) for queue in good] == [expected] * 3
        await bad.await_finished()
        assert bad.GenerateStatus() is GenerateRequestStatus.InternalError
        assert "poison" in bad.error


async def test_a_broken_step_loop_leaves_nobody_waiting(start_engine, monkeypatch):
    async with start_engine(FakeBackend(step_time=0.002)) as engine:
        _, queue = engine.start_request("fake", "x", greedy(max_new_tokens=400))
        await queue.aget()
        scheduler = engine._models["fake"].running.loop.scheduler
        monkeypatch.setattr(scheduler, "schedule", lambda now: 1 / 0)
        await queue.await_finished()
        assert queue.finish_reason is FinishReason.ERROR
        assert "ZeroDivisionError" in queue.error
        with pytest.raises(ModelStateError, match="step loop has failed"):
            engine.start_request("fake", "y")


async def test_memory_that_does_not_fit_is_one_sentence_with_numbers():
    class Heavy(FakeBackend):
        def memory_needs(self, info, config):
            import msgspec

            needs = super().memory_needs(info, config)
            return msgspec.structs.replace(needs, weights=1 << 41)

    async with AsyncEngine() as engine:
        with pytest.raises(InsufficientMemory, match=r"needs 2048.00 GiB for weights.*of 1024.00 GiB"):
            await engine.install_model(ModelConfig(model="heavy", backend=Heavy()))
        assert engine.models() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("device", None),
        ("threads", -1),
        ("max_length", 1),
        ("block_size", 8),
        ("num_blocks", 0),
        ("memory_fraction", 0),
        ("memory_fraction", True),
        ("prefix_cache_ttl", 0),
        ("enable_prefix_cache", 1),
        ("batch_invariant", "yes"),
        ("max_num_seqs", 0),
        ("policy", "fcfs"),
        ("tenant_weights", {"a": 0}),
        ("queue_timeout", -1.0),
    ],
)
def test_config_names_field_value_and_range(field, value):
    with pytest.raises(InvalidArgument, match=f"{field} is {value!r}; allowed: "):
        ModelConfig(**{"model": "m", field: value})
    with pytest.raises(TypeError):
        ModelConfig(model="m", max_batch=3)


async def test_fair_policy_reaches_the_engine(start_engine):
    async with start_engine(FakeBackend(step_time=0.001), policy=Policy.FAIR, max_num_seqs=1) as engine:
        heavy = [
            engine.start_request("fake", "x" * 20, greedy(max_new_tokens=5), tenant="heavy")[1]
            for _ in range(5)
        ]
        _, light = engine.start_request("fake", "y", greedy(max_new_tokens=5), tenant="light")
        await light.await_finished()
        assert sum(queue.finish_reason is not None for queue in heavy) <= 2
        await engine.sync_request("fake")
