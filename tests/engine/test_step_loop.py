"""Requests from many threads, while the loop looks at what is live."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import RequestOptions, SamplingParams
from millstream.errors import AdapterInUse


@pytest.fixture
def short_switch_interval():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Gate:
    """Holds every step back until it is opened, at the latest at the end of its block."""

    def __init__(self):
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, batch):
        self.entered.set()
        assert self.open.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.set()


@asynccontextmanager
async def gated_engine(start_engine):
    gate = Gate()
    backend = FakeBackend(vocab_size=200, on_batch=gate)
    async with start_engine(backend, warmup=False) as engine:
        with gate:
            yield engine, gate


@pytest.mark.usefixtures("short_switch_interval")
async def test_many_threads_submit_while_the_loop_looks_at_what_is_live(start_engine):
    params = SamplingParams(temperature=0, max_new_tokens=2)

    def submit(engine):
        intake = engine.installed("fake").intake()
        return [intake.start_requests([[1, 2, 3]], params, RequestOptions())[0] for _ in range(1000)]

    async with gated_engine(start_engine) as (engine, gate):
        await engine.load_adapter("fake", "a", ".")
        await engine.start_request("fake", [1], params, RequestOptions(adapter="a"))
        with ThreadPoolExecutor(4) as threads:
            submitting = [threads.submit(submit, engine) for _ in range(4)]
            while not all(thread.done() for thread in submitting):
                waiting = asyncio.create_task(engine.sync_request("fake"))
                await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
                with pytest.raises(AdapterInUse):
                    await engine.unload_adapter("fake", "a")
            started = [pair for thread in submitting for pair in thread.result()]
        engine.cancel_requests("fake")
        gate.open.set()
        await engine.sync_request("fake")
        assert all(handle.finished for handle, _ in started)


@pytest.mark.parametrize("end", ["sync", "stop", "unload"])
async def test_what_is_still_in_the_inbox_counts_as_live(start_engine, end):
    params = SamplingParams(temperature=0, max_new_tokens=1)
    async with gated_engine(start_engine) as (engine, gate):
        await engine.load_adapter("fake", "a", ".")
        first, _ = await engine.start_request("fake", [1], params)
        await asyncio.to_thread(gate.entered.wait)
        # A step is under way, so this one stays in the inbox.
        second, _ = await engine.start_request("fake", [2], params, RequestOptions(adapter="a"))
        if end == "unload":
            with pytest.raises(AdapterInUse):
                await engine.unload_adapter("fake", "a")
            return
        verb = engine.sync_request if end == "sync" else engine.stop_model
        ending = asyncio.create_task(verb("fake"))
        await asyncio.sleep(0)
        gate.open.set()
        await ending
        assert first.finished
        assert second.finished
        assert second.stream.num_output_tokens == 1


async def test_cancelling_all_reaches_what_is_still_in_the_inbox(start_engine):
    params = SamplingParams(temperature=0, max_new_tokens=100)
    async with gated_engine(start_engine) as (engine, gate):
        first, _ = await engine.start_request("fake", [1], params)
        await asyncio.to_thread(gate.entered.wait)
        second, _ = await engine.start_request("fake", [2], params)
        engine.cancel_requests("fake")
        gate.open.set()
        await engine.sync_request("fake")
        assert [first.stream.finish_reason.value, second.stream.finish_reason.value] == ["cancelled"] * 2
