"""Adapters through the engine, over the fake worker."""

import asyncio

import pytest

from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions, SamplingParams
from millstream.errors import (
    AdapterInUse,
    AdapterLoaded,
    AdapterNotFound,
    InvalidArgument,
    LimitExceeded,
    ModelStateError,
    NotSupported,
)

from ..waiting import until

PROMPT = [3] * 40


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "adapter.gguf"
    path.touch()
    return path


async def generate(engine, adapter=None, tokens=12, prompt=PROMPT):
    params = SamplingParams(temperature=0, max_new_tokens=tokens)
    _, stream = await engine.start_request("fake", prompt, params, RequestOptions(adapter=adapter))
    await stream.await_finished()
    return stream.get_nowait().token_ids, stream.num_cached_tokens


@pytest.mark.parametrize("mixes", [True, False])
async def test_each_request_runs_under_its_own_adapter(start_engine, file, mixes):
    async with start_engine() as engine:
        for name in "ab":
            await engine.load_adapter("fake", name, file)
        alone = {name: (await generate(engine, name))[0] for name in (None, "a", "b")}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    async with start_engine(FakeBackend(vocab_size=200, mixes_adapters=mixes), num_blocks=32) as engine:
        for name in "ab":
            await engine.load_adapter("fake", name, file)
        names = [None, "a", "b", "a", None, "b"] * 4
        together = await asyncio.gather(*(generate(engine, name) for name in names))
    assert [tokens for tokens, _ in together] == [alone[name] for name in names]


async def test_a_new_adapter_of_an_old_name_finds_no_old_prefix(start_engine, file):
    async with start_engine() as engine:
        await engine.load_adapter("fake", "a", file)
        assert (await generate(engine, "a"))[1] == 0
        assert (await generate(engine, "a"))[1] == 32
        await engine.unload_adapter("fake", "a")
        await engine.load_adapter("fake", "a", file)
        assert (await generate(engine, "a"))[1] == 0


async def test_an_adapter_in_use_stays(start_engine, file):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.005)) as engine:
        await engine.load_adapter("fake", "a", file)
        task = asyncio.create_task(generate(engine, "a", tokens=20))
        await until(lambda: engine.stats("fake").running == 1)
        with pytest.raises(AdapterInUse, match="'a'"):
            await engine.unload_adapter("fake", "a")
        assert len((await task)[0]) == 20
        await engine.unload_adapter("fake", "a")
        assert engine.adapters("fake") == []


async def test_refusals(start_engine, file, tmp_path):
    async with start_engine(max_adapters=1, max_adapter_rank=8) as engine:
        with pytest.raises(
            AdapterNotFound, match="no adapter named 'a' is loaded in model 'fake'; loaded: none"
        ):
            await generate(engine, "a")
        with pytest.raises(AdapterNotFound, match=r"no adapter 'a' at .*missing"):
            await engine.load_adapter("fake", "a", tmp_path / "missing")
        with pytest.raises(InvalidArgument, match="scale is nan"):
            await engine.load_adapter("fake", "a", file, scale=float("nan"))
        with pytest.raises(InvalidArgument, match="adapter is 3"):
            await generate(engine, 3)
        await engine.load_adapter("fake", "a", file)
        with pytest.raises(AdapterLoaded, match="'a'"):
            await engine.load_adapter("fake", "a", file)
        with pytest.raises(LimitExceeded, match="1 adapters are loaded; at most 1"):
            await engine.load_adapter("fake", "b", file)
        with pytest.raises(AdapterNotFound, match="loaded: 'a'"):
            await engine.unload_adapter("fake", "b")
        assert len((await generate(engine, "a"))[0]) == 12
    async with start_engine(max_adapter_rank=7) as engine:
        with pytest.raises(LimitExceeded, match="rank 8; at most 7"):
            await engine.load_adapter("fake", "a", file)
        assert engine.adapters("fake") == []


async def test_adapters_may_come_with_the_model(file, tmp_path):
    async with AsyncEngine() as engine:
        for name, path in (("good", file), ("bad", tmp_path / "missing")):
            backend = FakeBackend(vocab_size=200)
            await engine.install_model(
                ModelConfig(model=name, backend=backend, max_length=512, adapters={"a": str(path)})
            )
        await engine.start_model("good")
        assert engine.adapters("good") == ["a"]
        with pytest.raises(AdapterNotFound, match="missing"):
            await engine.start_model("bad")
        with pytest.raises(ModelStateError, match="Initial"):
            engine.adapters("bad")


@pytest.mark.torch
async def test_models_on_torch_take_none(file):
    async with AsyncEngine() as engine:
        await engine.install_model(ModelConfig(model=str(PYHELP), name="m", num_blocks=32, max_length=128))
        await engine.start_model("m")
        with pytest.raises(NotSupported, match="'m' takes no adapters"):
            await engine.load_adapter("m", "a", file)
