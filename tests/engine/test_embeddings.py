"""Embeddings through the engine, over the fake worker."""

import asyncio
from math import hypot

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import Engine, FinishReason, ModelConfig, Pooling, PoolingParams, SamplingParams
from millstream.errors import InvalidArgument, LimitExceeded, NotSupported, RequestFailed, WorkerError

from ..waiting import HANG_SECONDS, until

RAW = PoolingParams(normalize=False)


async def test_embeddings_of_many_prompts_are_those_of_each_alone(start_engine):
    prompts = [[n] * (1 + 17 * n) for n in range(12)]
    async with start_engine(max_num_seqs=1) as engine:
        alone = [(await engine.embed("fake", [prompt]))[0] for prompt in prompts]
    async with start_engine(num_blocks=32) as engine:
        generating = await engine.start_request(
            "fake", [5] * 30, SamplingParams(temperature=0, max_new_tokens=40)
        )
        together = await engine.embed("fake", prompts)
        await generating[1].await_finished()
    assert together == alone
    assert [embedding.num_tokens for embedding in together] == [len(prompt) for prompt in prompts]
    assert generating[1].num_output_tokens == 40


async def test_texts_are_encoded(start_engine):
    async with start_engine() as engine:
        ids = engine.tokenizer("fake").encode("some text")
        assert await engine.embed("fake", ["some text"]) == await engine.embed("fake", [ids])


async def test_dimensions_are_kept_before_the_length_is_made_one(start_engine):
    async with start_engine() as engine:
        (raw,) = await engine.embed("fake", [[1, 2, 3]], RAW)
        (normal,) = await engine.embed("fake", [[1, 2, 3]])
        (short,) = await engine.embed("fake", [[1, 2, 3]], PoolingParams(dimensions=2))
    assert hypot(*normal.vector) == pytest.approx(1)
    assert normal.vector == pytest.approx([value / hypot(*raw.vector) for value in raw.vector])
    assert short.vector == pytest.approx([value / hypot(*raw.vector[:2]) for value in raw.vector[:2]])


async def test_pooling_is_the_models_own_unless_the_request_names_another(start_engine):
    async with start_engine() as engine:
        found = {
            pooling: (await engine.embed("fake", [[7] * 100], PoolingParams(pooling=pooling)))[0]
            for pooling in (None, *Pooling)
        }
    assert found[None] == found[Pooling.LAST]
    assert len({found[pooling].vector for pooling in Pooling}) == 3


async def test_a_warm_cache_changes_nothing(start_engine):
    async with start_engine() as engine:
        params = PoolingParams(pooling=Pooling.MEAN)
        first = await engine.embed("fake", [[1] * 100], params)
        await (await engine.start_request("fake", [1] * 100, SamplingParams(max_new_tokens=1)))[
            1
        ].await_finished()
        assert await engine.embed("fake", [[1] * 100], params) == first


async def test_a_handle_and_a_queue_for_each(start_engine):
    async with start_engine() as engine:
        handle, stream = await engine.start_embedding("fake", [1, 2, 3], RAW)
        await engine.sync_request("fake", handle)
        assert stream.finish_reason is FinishReason.STOP
        assert stream.num_output_tokens == 0
        assert stream.times.first_scheduled is not None
        assert (await engine.embed("fake", [[1, 2, 3]], RAW))[0].vector == stream.embedding


@pytest.mark.parametrize(
    ("prompts", "params", "error", "text"),
    [
        ([[]], None, InvalidArgument, "at least one token"),
        ([[200]], None, InvalidArgument, "0 to 199"),
        ([[1], [1] * 513], None, LimitExceeded, "513 tokens; 'fake' takes up to 512"),
        ("text", None, InvalidArgument, "a sequence of texts"),
        ([[1]], PoolingParams(dimensions=7), InvalidArgument, "dimensions is 7; allowed: 1 to 6"),
    ],
)
async def test_refusals(start_engine, prompts, params, error, text):
    async with start_engine() as engine:
        with pytest.raises(error, match=text):
            await engine.embed("fake", prompts, params)
        assert len(await engine.embed("fake", [[1] * 512])) == 1


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("pooling", "mean", "Pooling.MEAN"), ("normalize", 1, "True or False"), ("dimensions", 0, "1 or more")],
)
def test_bad_parameters(field, value, allowed):
    with pytest.raises(InvalidArgument, match=f"{field} is {value!r}; allowed: .*{allowed}"):
        PoolingParams(**{field: value})


async def test_a_prompt_that_must_come_whole(start_engine):
    backend = FakeBackend(vocab_size=200, chunks_prompts=False)
    async with start_engine(backend) as engine:
        assert len(await engine.embed("fake", [[1] * 64, [2] * 50, [3] * 3])) == 3
        with pytest.raises(LimitExceeded, match="at most 64"):
            await engine.embed("fake", [[1] * 65])


async def test_a_model_that_only_embeds_generates_nothing(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, generates=False)) as engine:
        with pytest.raises(NotSupported, match="'fake' gives embeddings and generates no text"):
            await engine.start_request("fake", [1])
        assert len(await engine.embed("fake", [[1]])) == 1


async def test_a_failure_is_told_and_nothing_is_left_running(start_engine):
    def fail(batch):
        if any(len(chunk.tokens) == 3 for chunk in batch.chunks):
            raise WorkerError("no")

    async with start_engine(FakeBackend(vocab_size=200, on_batch=fail)) as engine:
        with pytest.raises(RequestFailed, match=r"no embedding was computed: .*told to fail"):
            await engine.embed("fake", [[1], [1, 2, 3], [2] * 400])
        await asyncio.wait_for(engine.sync_request("fake"), HANG_SECONDS)
        assert len(await engine.embed("fake", [[1]])) == 1


async def test_leaving_cancels(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.05)) as engine:
        task = asyncio.create_task(engine.embed("fake", [[n] * 512 for n in range(8)]))
        await until(lambda: engine.stats("fake").running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(engine.sync_request("fake"), HANG_SECONDS)
        assert engine.stats("fake").running == 0


def test_from_a_thread():
    with Engine() as engine:
        engine.install_model(ModelConfig(model="fake", backend=FakeBackend(vocab_size=200)))
        engine.start_model("fake")
        assert engine.embed("fake", [[1, 2]], RAW)[0].vector == _embedded(engine)


def _embedded(engine):
    handle, stream = engine.start_embedding("fake", [1, 2], RAW)
    engine.sync_request("fake", handle)
    return stream.embedding


async def test_as_many_inputs_as_openai_allows_fit_a_queue_of_1024_requests(start_engine):
    async with start_engine(max_queued_requests=1024) as engine:
        found = await engine.embed("fake", [[1, 2, n % 200] for n in range(2048)], RAW)
        assert len(found) == 2048
        assert found[3] == (await engine.embed("fake", [[1, 2, 3]], RAW))[0]
