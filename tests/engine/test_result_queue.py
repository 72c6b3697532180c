"""ResultQueue by itself: reads, waits, status and statistics."""

import asyncio
import threading
import time

from millstream.engine import FinishReason, GenerateRequestStatus, ResultQueue
from millstream.engine.result_queue import Wakeups
from millstream.scheduler import TokenLogprobs


def put(queue, *tokens, logprobs=None):
    wakeups = Wakeups()
    for token in tokens:
        queue.put(token, chr(token), logprobs, time.monotonic(), wakeups)
    wakeups.flush()


def finish(queue, reason=FinishReason.STOP, **kwargs):
    wakeups = Wakeups()
    queue.finish(reason, wakeups, time.monotonic(), **kwargs)
    wakeups.flush()


def test_status_follows_the_tokens_and_an_end_is_not_reported_over_unread_ones():
    queue = ResultQueue(prompt_length=3)
    assert queue.GenerateStatus() is GenerateRequestStatus.Init
    put(queue, 65)
    assert queue.GenerateStatus() is GenerateRequestStatus.ContextFinished
    put(queue, 66)
    assert queue.GenerateStatus() is GenerateRequestStatus.Generating
    assert queue.Get().ids_from_generate == [65, 66]
    put(queue, 67)
    finish(queue)
    assert queue.GenerateStatus() is GenerateRequestStatus.Generating
    last = queue.Get()
    assert last.ids_from_generate == [67]
    assert last.finish_reason is FinishReason.STOP
    assert queue.GenerateStatus() is GenerateRequestStatus.GenerateFinished
    assert queue.Get().ids_from_generate == []


def test_a_status_poller_that_never_reads_sees_the_end():
    queue = ResultQueue(prompt_length=1)
    put(queue, 65)
    finish(queue, FinishReason.INTERRUPTED)
    assert queue.GenerateStatus() is GenerateRequestStatus.GenerateInterrupted


def test_blocked_readers_wake_up_and_each_token_goes_to_one():
    queue = ResultQueue(prompt_length=1)
    got = []

    def reader():
        while True:
            elements = queue.Get()
            got.extend(elements.ids_from_generate)
            if elements.finish_reason is not None:
                return

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for token in range(1, 400):
        put(queue, token)
    finish(queue)
    for thread in threads:
        thread.join(10)
    assert sorted(got) == list(range(1, 400))


async def test_a_cancelled_reader_takes_no_token_with_it():
    queue = ResultQueue(prompt_length=1)
    waiting = asyncio.create_task(queue.aget())
    await asyncio.sleep(0)
    put(queue, 65)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await queue.aget()).ids_from_generate == [65]
    assert not queue._waiters


def test_time_out_is_none_and_loses_nothing():
    queue = ResultQueue(prompt_length=1)
    assert queue.GetWithTimeout(5) is None
    assert not queue._waiters
    put(queue, 65)
    assert queue.GetWithTimeout(5).ids_from_generate == [65]
    assert not queue.wait_finished(0.005)
    finish(queue, FinishReason.ERROR, error="broken")
    assert queue.wait_finished()
    assert queue.error == "broken"


def test_logprobs_text_and_statistics():
    queue = ResultQueue(prompt_length=40, arrival=time.monotonic() - 1.0)
    queue.prefix_cache_len = 16
    queue.times.first_scheduled = time.monotonic() - 0.5
    put(queue, 65, 66, logprobs=TokenLogprobs(-0.25, ((65, -0.25), (66, -2.0))))
    finish(queue, text="!")
    elements = queue.Get()
    assert elements.text == "AB!"
    assert elements.token_logprobs_list == [-0.25, -0.25]
    assert elements.log_probs_list[0] == [(65, -0.25), (66, -2.0)]
    assert elements.prefix_cache_len == elements.prefix_len_cpu == 16
    info = queue.RequestStatInfo()
    assert info["time_in_queue"] == 500
    assert 1000 <= info["time_to_first_token"] < 2000
    assert info["context_token_length"] == 40
    assert info["context_cached_length"] == 16
    assert info["generated_token_length"] == 2
    assert 40 <= info["context_tps"] <= 48
    assert info["finished_time"] >= info["last_token_time"] >= info["first_token_time"] > info["arrival_time"]
    assert abs(info["finished_time"] - time.time() * 1000) < 1000
    assert all(isinstance(value, int) for value in info.values())
