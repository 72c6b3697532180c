"""What an engine says about its progress: stalls, failures, and the end of all requests at once."""

import asyncio
import threading
from time import monotonic

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import SamplingParams
from millstream.errors import ModelNotFound, ModelStateError
from millstream.scheduler import FinishReason, Scheduler

from ..waiting import HANG_SECONDS


class Blocker:
    """Holds the worker's thread in a step for as long as a test wants."""

    def __init__(self):
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.entered.set()
        assert self.go_on.wait(HANG_SECONDS)


async def start(engine, **params):
    params = SamplingParams(temperature=0, **{"max_new_tokens": 3, **params})
    return (await engine.start_request("fake", [1, 2, 3], params))[1]


async def test_a_step_that_does_not_end_is_seen_and_ends_with_the_step(start_engine):
    blocker = Blocker()
    backend = FakeBackend(vocab_size=200, on_batch=blocker)
    async with start_engine(backend, warmup=False) as engine:
        assert engine.stats("fake").stalled_seconds == 0
        before = monotonic()
        stream = await start(engine)
        await asyncio.to_thread(blocker.entered.wait, HANG_SECONDS)
        first = engine.stats("fake").stalled_seconds
        await asyncio.sleep(0.01)
        second = engine.stats("fake").stalled_seconds
        assert 0 < first < second <= monotonic() - before
        blocker.go_on.set()
        await stream.await_finished()
        while engine.stats("fake").stalled_seconds:
            await asyncio.sleep(0)
        assert stream.finish_reason is FinishReason.LENGTH


async def test_work_that_waits_for_the_loop_counts_from_its_posting(start_engine):
    async with start_engine() as engine:
        await start(engine)
        # No step can have begun: the loop has not had its turn.
        assert engine.stats("fake").stalled_seconds > 0
        await engine.sync_request("fake")


async def test_a_model_whose_steps_end_is_not_stalled_though_it_never_rests(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.002)) as engine:
        before = monotonic()
        stream = await start(engine, max_new_tokens=60, ignore_eos=True)
        await stream.aget()
        while len(stream.get_nowait().token_ids) < 1:
            await asyncio.sleep(0.001)
        for _ in range(10):
            await stream.aget()
        assert engine.stats("fake").stalled_seconds < monotonic() - before - 0.01


async def test_a_loop_that_has_failed_says_so(start_engine, monkeypatch):
    def fail(self, now):
        raise RuntimeError("a bug")

    async with start_engine() as engine:
        assert engine.stats("fake").failure is None
        monkeypatch.setattr(Scheduler, "schedule", fail)
        stream = await start(engine)
        await stream.await_finished()
        assert stream.finish_reason is FinishReason.ERROR
        stats = engine.stats("fake")
        assert "a bug" in stats.failure and stats.stalled_seconds == 0
        with pytest.raises(ModelStateError, match="a bug"):
            await start(engine)


async def test_all_requests_of_a_model_can_be_cancelled(start_engine):
    async with start_engine(FakeBackend(vocab_size=200, step_time=0.001), max_num_seqs=2) as engine:
        streams = [await start(engine, max_new_tokens=400, ignore_eos=True) for _ in range(5)]
        await streams[0].aget()
        engine.cancel_requests("fake")
        await engine.sync_request("fake")
        assert {stream.finish_reason for stream in streams} == {FinishReason.CANCELLED}
        again = await start(engine)
        await again.await_finished()
        assert again.finish_reason is FinishReason.LENGTH
        with pytest.raises(ModelNotFound):
            engine.cancel_requests("other")
