"""Engine: the same verbs from plain threads."""

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import Engine, FinishReason, ModelConfig, SamplingParams
from millstream.errors import ModelStateError

from ..waiting import HANG_SECONDS


@pytest.fixture
def engine():
    with Engine() as engine:
        backend = FakeBackend(vocab_size=200, step_time=0.001)
        engine.install_model(ModelConfig(model="fake", backend=backend, max_num_seqs=8, max_length=512))
        engine.start_model("fake")
        yield engine


def params(count):
    return SamplingParams(temperature=0, max_new_tokens=count)


def test_threads_share_one_engine(engine):
    results = {}

    def use(index):
        handle, stream = engine.start_request("fake", f"prompt {index % 3}", params(20))
        ids = [token for output in stream for token in output.token_ids]
        engine.release_request("fake", handle)
        results[index] = ids

    threads = [threading.Thread(target=use, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == list(range(12))
    assert all(len(ids) == 20 for ids in results.values())
    assert all(results[index] == results[index % 3] for index in results)


def test_several_texts_and_sync_of_all(engine):
    started = engine.start_requests("fake", ["a", "bb"], params(5))
    engine.sync_request("fake")
    assert [stream.finish_reason for _, stream in started] == [FinishReason.LENGTH] * 2


def test_reading_with_a_timeout_loses_nothing(engine):
    _, stream = engine.start_request("fake", "x", params(30))
    ids = []
    while stream.finish_reason is None or ids == []:
        with suppress(TimeoutError):
            ids += stream.get(timeout=0.001).token_ids
    ids += stream.get_nowait().token_ids
    assert len(ids) == 30
    assert stream.get_nowait().token_ids == []
    assert stream.get().token_ids == []


def test_coroutines_of_another_loop_can_read(engine):
    async def read():
        _, stream = engine.start_request("fake", "x", params(10))
        return [token async for elements in stream for token in elements.token_ids]

    assert len(asyncio.run(read())) == 10


def test_close_ends_what_is_running_and_may_be_called_twice():
    engine = Engine()
    engine.install_model(ModelConfig(model="fake", backend=FakeBackend(step_time=0.002)))
    engine.start_model("fake")
    _, stream = engine.start_request("fake", "x", params(400))
    engine.close()
    engine.close()
    assert stream.finish_reason is FinishReason.CANCELLED


def test_progress_tells_what_is_being_done():
    seen = []
    with Engine() as engine:
        engine.install_model(ModelConfig(model="fake", backend=FakeBackend()))
        engine.start_model("fake", progress=lambda what, done: seen.append((what, done)))
        with pytest.raises(ModelStateError):
            engine.start_model("fake")
    assert seen[0] == ("weights", 1.0)
    assert seen[-1] == ("warm-up", 1.0)


def test_a_program_that_closes_nothing_exits_quietly():
    code = """
from millstream import Engine, ModelConfig, SamplingParams
from millstream.backends.fake import FakeBackend
engine = Engine()
engine.install_model(ModelConfig(model="fake", backend=FakeBackend(step_time=0.001)))
engine.start_model("fake")
handle, stream = engine.start_request("fake", "x", SamplingParams(max_new_tokens=4000))
stream.get()
print("done")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_dropped_engine_ends_its_thread():
    engine = Engine()
    engine.install_model(ModelConfig(model="fake", backend=FakeBackend(step_time=0.001)))
    engine.start_model("fake")
    _, stream = engine.start_request("fake", "x", params(4000))
    del engine
    gc.collect()
    assert stream.wait_finished(10)
    assert stream.finish_reason is FinishReason.CANCELLED


def test_leaving_the_loop_over_outputs_ends_the_request(engine):
    outputs = list(engine.generate_iterator("fake", "x", params(5)))
    assert sum(len(output.token_ids) for output in outputs) == 5
    for _ in engine.generate_iterator("fake", "x", params(500)):
        break
    engine.sync_request("fake")
    assert engine.stats("fake").finished[FinishReason.CANCELLED] == 1
