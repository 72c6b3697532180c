"""OutputStream by itself: reads, waits, time-outs."""

import asyncio
import threading
import time

import pytest

from millstream.engine import FinishReason, OutputStream
from millstream.engine.output_stream import Wakeups
from millstream.errors import InvalidArgument
from millstream.scheduler import TokenLogprobs


def put(stream, *tokens, logprobs=None):
    wakeups = Wakeups()
    for token in tokens:
        stream.put(token, chr(token), logprobs, time.monotonic(), wakeups)
    wakeups.flush()


def finish(stream, reason=FinishReason.STOP, **kwargs):
    wakeups = Wakeups()
    stream.finish(reason, wakeups, time.monotonic(), **kwargs)
    wakeups.flush()


def test_reads_take_what_is_new_and_the_last_one_has_the_reason():
    stream = OutputStream(num_prompt_tokens=3)
    assert stream.empty
    put(stream, 65, 66)
    assert not stream.empty
    assert stream.get().token_ids == [65, 66]
    assert stream.get_nowait().token_ids == []
    put(stream, 67)
    finish(stream)
    last = stream.get()
    assert (last.token_ids, last.text, last.finish_reason) == ([67], "C", FinishReason.STOP)
    after = stream.get()
    assert (after.token_ids, after.finish_reason) == ([], FinishReason.STOP)
    assert stream.num_output_tokens == 3


def test_blocked_readers_wake_up_and_each_token_goes_to_one():
    stream = OutputStream(num_prompt_tokens=1)
    got = []

    def reader():
        for output in stream:
            got.extend(output.token_ids)

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for token in range(1, 400):
        put(stream, token)
    finish(stream)
    for thread in threads:
        thread.join(10)
    assert sorted(got) == list(range(1, 400))


async def test_a_cancelled_reader_takes_no_token_with_it():
    stream = OutputStream(num_prompt_tokens=1)
    waiting = asyncio.create_task(stream.aget())
    await asyncio.sleep(0)
    put(stream, 65)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await stream.aget()).token_ids == [65]
    assert not stream._waiters


async def test_a_time_out_raises_and_loses_nothing():
    stream = OutputStream(num_prompt_tokens=1)
    with pytest.raises(TimeoutError, match="the request goes on"):
        stream.get(timeout=0.005)
    with pytest.raises(TimeoutError):
        await stream.aget(timeout=0.005)
    assert not stream._waiters
    with pytest.raises(InvalidArgument, match="timeout is -1"):
        stream.get(timeout=-1)
    put(stream, 65)
    assert stream.get(timeout=0).token_ids == [65]
    put(stream, 66)
    assert (await stream.aget(timeout=0)).token_ids == [66]
    assert not stream.wait_finished(0.005)
    finish(stream, FinishReason.ERROR, error="broken")
    assert stream.wait_finished()
    assert stream.error == "broken"


async def test_a_read_with_a_time_out_wakes_up_with_the_token():
    stream = OutputStream(num_prompt_tokens=1)
    waiting = asyncio.create_task(stream.aget(timeout=60))
    await asyncio.sleep(0)
    put(stream, 65)
    assert (await waiting).token_ids == [65]


def test_logprobs_and_text_held_back_until_the_end():
    stream = OutputStream(num_prompt_tokens=40)
    scores = TokenLogprobs(-0.25, ((65, -0.25), (66, -2.0)))
    put(stream, 65, 66, logprobs=scores)
    finish(stream, text="!")
    output = stream.get()
    assert output.text == "AB!"
    assert output.logprobs == [scores, scores]
