"""AsyncEngine over the fake worker: life cycle, cancellation, refusals, streaming, failures."""

import asyncio
import random
from contextlib import aclosing

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import (
    AsyncEngine,
    FinishReason,
    ModelConfig,
    ModelState,
    Policy,
    RequestOptions,
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


async def read(stream):
    ids, text = [], ""
    async for elements in stream:
        ids += elements.token_ids
        text += elements.text
    return ids, text


async def test_streamed_tokens_and_text_are_those_of_the_request_alone(start_engine):
    rng = random.Random(1)
    prompts = [[rng.randrange(200) for _ in range(rng.randrange(1, 60))] for _ in range(24)]
    alone = []
    async with start_engine(max_num_seqs=1) as engine:
        for prompt in prompts:
            _, stream = await engine.start_request("fake", prompt, greedy(max_new_tokens=20))
            alone.append(await read(stream))
    async with start_engine(num_blocks=24, max_length=100) as engine:
        streams = [(await engine.start_request("fake", p, greedy(max_new_tokens=20)))[1] for p in prompts]
        together = await asyncio.gather(*map(read, streams))
        assert engine.stats("fake").preemptions > 0
    assert together == alone
    assert all(len(text) == len(ids) == 20 for ids, text in alone)


async def test_an_output_that_nothing_bounds_ends_at_the_model_s_default(start_engine):
    prompt = [3, 1, 4, 1]

    async def lengths(default):
        async with start_engine(default_max_new_tokens=default, max_length=64) as engine:
            asked = (greedy(), greedy(max_new_tokens=12), greedy(max_length=20), greedy(max_new_tokens=64))
            streams = [(await engine.start_request("fake", prompt, params))[1] for params in asked]
            return [len((await read(stream))[0]) for stream in streams]

    assert await lengths(7) == [7, 12, 16, 60]
    assert await lengths(None) == [60, 12, 16, 60]


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
            await engine.start_request("m", "x")
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
        _, stream = await engine.start_request("m", "again", greedy(max_new_tokens=3))
        assert len((await read(stream))[0]) == 3
        await engine.stop_model("m")
        await engine.release_model("m")
        assert engine.models() == []


async def test_several_models_run_at_once():
    async with AsyncEngine() as engine:
        for name, vocab in (("a", 50), ("b", 90)):
            await engine.install_model(ModelConfig(model=name, backend=FakeBackend(vocab_size=vocab)))
        await asyncio.gather(engine.start_model("a"), engine.start_model("b"))
        streams = [
            (await engine.start_request(name, "same text", greedy(max_new_tokens=30)))[1] for name in "ab"
        ]
        (ids_a, _), (ids_b, _) = await asyncio.gather(*map(read, streams))
        assert max(ids_a) < 50 <= max(ids_b)


async def test_stopping_refuses_new_requests_and_drains(start_engine):
    async with start_engine(FakeBackend(step_time=0.02)) as engine:
        _, stream = await engine.start_request("fake", "x", greedy(max_new_tokens=30))
        stopping = asyncio.create_task(engine.stop_model("fake"))
        await until(lambda: engine.model_state("fake") is ModelState.STOPPING)
        with pytest.raises(ModelStateError, match="Stopping"):
            await engine.start_request("fake", "y")
        await stopping
        assert stream.finish_reason is FinishReason.LENGTH
        assert stream.num_output_tokens == 30


async def test_stopping_with_a_timeout_cancels_the_rest(start_engine):
    async with start_engine(FakeBackend(step_time=0.002)) as engine:
        _, stream = await engine.start_request("fake", "x", greedy(max_new_tokens=500))
        await engine.stop_model("fake", timeout=0.02)
        assert stream.finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("when", ["queued", "prefill", "decode"])
async def test_cancel_frees_blocks_and_disturbs_nobody(start_engine, when, samples):
    # The victim's prompt takes several steps; a full house keeps it queued.
    seats = 1 if when == "queued" else 8
    backend = FakeBackend(vocab_size=200, step_time=0.004)
    async with start_engine(backend, max_num_seqs=seats, max_num_batched_tokens=16) as engine:
        _, expected_queue = await engine.start_request("fake", "other", greedy(max_new_tokens=60))
        expected = await read(expected_queue)
        _, other = await engine.start_request("fake", "other", greedy(max_new_tokens=60))
        long = "z" * (400 if when == "prefill" else 20)
        handle, victim = await engine.start_request("fake", long, greedy(max_new_tokens=90, n=samples))
        if when == "decode":
            await victim.aget()
        elif when == "prefill":
            await until(lambda: engine.stats("fake").running == 2)
            assert victim.num_output_tokens == 0
        engine.stop_request("fake", handle)
        await engine.sync_request("fake", handle)
        assert {stream.finish_reason for stream in handle.streams} == {FinishReason.CANCELLED}
        victim.get_nowait()
        assert victim.finish_reason is FinishReason.CANCELLED
        assert (victim.num_output_tokens > 0) == (when == "decode")
        assert await read(other) == expected
        await engine.sync_request("fake")
        stats = engine.stats("fake")
        assert stats.held_blocks == 0
        assert stats.running == stats.waiting == 0


async def test_bad_requests_get_one_clear_error_and_others_go_on(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.001), num_blocks=40) as engine:
        _, other = await engine.start_request("fake", "other", greedy(max_new_tokens=40))
        ids = engine.start_request
        with pytest.raises(InvalidArgument, match="at least one token"):
            await ids("fake", [])
        with pytest.raises(InvalidArgument, match="prompt token id is 200; allowed: integers from 0 to 199"):
            await ids("fake", [1, 200])
        with pytest.raises(InvalidArgument, match="prompt token id is -1"):
            await ids("fake", [-1])
        with pytest.raises(InvalidArgument, match="prompt token id is 'a'"):
            await ids("fake", ["a"])
        with pytest.raises(LimitExceeded, match="512 tokens; 'fake' takes up to 511"):
            await ids("fake", [1] * 512)
        with pytest.raises(LimitExceeded, match="max_length is 513"):
            await ids("fake", [1], greedy(max_length=513))
        with pytest.raises(LimitExceeded, match="leaves no room"):
            await ids("fake", [1] * 20, greedy(max_length=20))
        with pytest.raises(InvalidArgument, match="stop_token_ids is 500"):
            await ids("fake", [1], greedy(stop_token_ids=(500,)))
        with pytest.raises(InvalidArgument, match="priority is 'high'"):
            await ids("fake", [1], options=RequestOptions(priority="high"))
        with pytest.raises(InvalidArgument, match="deadline is -1"):
            await ids("fake", [1], options=RequestOptions(deadline=-1))
        with pytest.raises(UnknownRequest):
            engine.stop_request("fake", "no handle")
        with pytest.raises(InvalidArgument, match="prompt is 3"):
            await engine.start_requests("fake", ["fine", 3])
        with pytest.raises(InvalidArgument, match="prompts is 'fine'"):
            await engine.start_requests("fake", "fine")
        with pytest.raises(InvalidArgument, match="apply_chat_template"):
            await ids("fake", [{"role": "user", "content": "hello"}])
        assert len((await read(other))[0]) == 40
        assert engine.stats("fake").waiting == 0


async def test_release_forgets_the_handle_but_not_the_tokens(start_engine):
    async with start_engine() as engine:
        handle, stream = await engine.start_request("fake", "x", greedy(max_new_tokens=4))
        await engine.sync_request("fake", handle)
        engine.release_request("fake", handle)
        with pytest.raises(UnknownRequest):
            engine.release_request("fake", handle)
        assert len(stream.get().token_ids) == 4


async def test_full_queue_is_refused_with_a_time_to_retry(start_engine):
    async with start_engine(FakeBackend(step_time=0.005), max_num_seqs=1, max_queued_requests=2) as engine:
        accepted, refused = [], []
        for _ in range(6):
            try:
                accepted.append(await engine.start_request("fake", "x" * 40, greedy(max_new_tokens=3)))
            except QueueFull as error:
                refused.append(error)
        assert len(accepted) == 2
        assert all(error.retry_after >= 1.0 for error in refused)
        await engine.sync_request("fake")
        assert all(stream.finish_reason is FinishReason.LENGTH for _, stream in accepted)


async def test_deadlines_have_finish_reasons_of_their_own(start_engine):
    async with start_engine(FakeBackend(step_time=0.01), max_num_seqs=1) as engine:
        _, running = await engine.start_request(
            "fake", "x", greedy(max_new_tokens=400), RequestOptions(deadline=1.0)
        )
        _, queued = await engine.start_request(
            "fake", "x", greedy(max_new_tokens=400), RequestOptions(queue_timeout=0.03)
        )
        await engine.sync_request("fake")
        assert running.finish_reason is FinishReason.TIMEOUT
        assert running.num_output_tokens > 0
        assert queued.finish_reason is FinishReason.QUEUE_TIMEOUT
        assert queued.num_output_tokens == 0


async def test_samples_differ_by_seed_and_the_first_is_the_request_alone(start_engine):
    async with start_engine() as engine:
        params = SamplingParams(temperature=1, seed=7, max_new_tokens=12)
        _, alone = await engine.start_request("fake", "x" * 40, params)
        handle, _ = await engine.start_request(
            "fake", "x" * 40, SamplingParams(temperature=1, seed=7, max_new_tokens=12, n=3)
        )
        outputs = [(await read(stream))[0] for stream in handle.streams]
        assert outputs[0] == (await read(alone))[0]
        assert len({tuple(output) for output in outputs}) == 3
        assert handle.streams[2].num_cached_tokens == 32


async def test_prefix_hits_are_reported_and_salts_keep_them_apart(start_engine):
    async with start_engine() as engine:

        async def cached(**options):
            _, stream = await engine.start_request(
                "fake", "p" * 50, greedy(max_new_tokens=2), RequestOptions(**options)
            )
            await stream.await_finished()
            return stream.num_cached_tokens

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
            handle, stream = await engine.start_request("fake", "p" * 40, params)
            await engine.sync_request("fake", handle)
            assert len(stream.prompt_logprobs) == 40
            assert stream.prompt_logprobs[0] is None
            assert None not in stream.prompt_logprobs[1:]


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
        _, expected = await engine.start_request("fake", [1, 2], greedy(max_new_tokens=20))
        expected = await read(expected)
        good = [(await engine.start_request("fake", [1, 2], greedy(max_new_tokens=20)))[1] for _ in range(3)]
        _, bad = await engine.start_request("fake", [1, poison], greedy(max_new_tokens=20))
        assert [await read(stream) for stream in good] == [expected] * 3
        await bad.await_finished()
        assert bad.finish_reason is FinishReason.ERROR
        assert "poison" in bad.error


async def test_a_broken_step_loop_leaves_nobody_waiting(start_engine, monkeypatch):
    async with start_engine(FakeBackend(step_time=0.002)) as engine:
        _, stream = await engine.start_request("fake", "x", greedy(max_new_tokens=400))
        await stream.aget()
        scheduler = engine._models["fake"].running.loop.scheduler
        monkeypatch.setattr(scheduler, "schedule", lambda now: 1 / 0)
        await stream.await_finished()
        assert stream.finish_reason is FinishReason.ERROR
        assert "ZeroDivisionError" in stream.error
        with pytest.raises(ModelStateError, match="step loop has failed"):
            await engine.start_request("fake", "y")


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
    with pytest.raises(InvalidArgument, match="field of ModelConfig is 'max_batch'"):
        ModelConfig(model="m", max_batch=3)


async def test_fair_policy_reaches_the_engine(start_engine):
    async with start_engine(FakeBackend(step_time=0.001), policy=Policy.FAIR, max_num_seqs=1) as engine:
        heavy = [
            (
                await engine.start_request(
                    "fake", "x" * 20, greedy(max_new_tokens=5), RequestOptions(tenant="heavy")
                )
            )[1]
            for _ in range(5)
        ]
        _, light = await engine.start_request(
            "fake", "y", greedy(max_new_tokens=5), RequestOptions(tenant="light")
        )
        await light.await_finished()
        assert sum(stream.finish_reason is not None for stream in heavy) <= 2
        await engine.sync_request("fake")


async def test_iterated_outputs_are_those_of_the_request(start_engine):
    async with start_engine() as engine:
        _, stream = await engine.start_request("fake", "x" * 20, greedy(max_new_tokens=20))
        expected = await read(stream)
        outputs = [o async for o in engine.generate_iterator("fake", "x" * 20, greedy(max_new_tokens=20))]
        assert [token for output in outputs for token in output.token_ids] == expected[0]
        assert "".join(output.text for output in outputs) == expected[1]
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        with pytest.raises(InvalidArgument, match="n is 2"):
            await anext(engine.generate_iterator("fake", "x", greedy(n=2)))


@pytest.mark.parametrize("how", ["break", "exception", "cancellation", "close"])
async def test_leaving_the_loop_over_outputs_ends_the_request(start_engine, how):
    params = greedy(max_new_tokens=400, ignore_eos=True)

    async def consume(engine, read_one):
        if how == "close":
            async with aclosing(engine.generate_iterator("fake", "x", params)) as outputs:
                async for _ in outputs:
                    return
        async for _ in engine.generate_iterator("fake", "x", params, RequestOptions(detokenize=False)):
            read_one.set()
            if how == "break":
                break
            if how == "exception":
                raise RuntimeError("left")

    async with start_engine(FakeBackend(step_time=0.001)) as engine:
        read_one = asyncio.Event()
        task = asyncio.create_task(consume(engine, read_one))
        if how == "cancellation":
            await read_one.wait()
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.sync_request("fake")
        stats = engine.stats("fake")
        assert stats.finished[FinishReason.CANCELLED] == 1
        assert stats.generated_tokens < 400


async def test_several_prompts_are_admitted_as_one_or_not_at_all(start_engine):
    params = greedy(max_new_tokens=1)
    async with start_engine(FakeBackend(step_time=0.001), max_queued_requests=1) as engine:
        with pytest.raises(InvalidArgument, match="at least one token"):
            await engine.start_requests("fake", ["fine", []], params)
        assert engine.stats("fake").waiting == 0
        started = await engine.start_requests("fake", ["x" * 30] * 100, params)
        with pytest.raises(QueueFull, match="1 requests are queued"):
            await engine.start_request("fake", "y", params)
        await engine.sync_request("fake")
        assert [stream.finish_reason for _, stream in started] == [FinishReason.LENGTH] * 100
        await engine.start_request("fake", "y", params)
        assert await engine.start_requests("fake", [], params) == []
