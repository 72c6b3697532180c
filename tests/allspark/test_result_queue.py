"""ResultQueue: DashInfer's names over an output stream."""

import time

from millstream.allspark import GenerateRequestStatus, ResultQueue
from millstream.engine import FinishReason, OutputStream
from millstream.engine.output_stream import Wakeups
from millstream.scheduler import TokenLogprobs


def new_queue(num_prompt_tokens=1, on_gpu=False, **kwargs):
    return ResultQueue(OutputStream(num_prompt_tokens=num_prompt_tokens, **kwargs), on_gpu=on_gpu)


def put(queue, *tokens, logprobs=None):
    for token in tokens:
        queue.stream.put(token, chr(token), logprobs, time.monotonic(), Wakeups())


def finish(queue, reason=FinishReason.STOP, **kwargs):
    queue.stream.finish(reason, Wakeups(), time.monotonic(), **kwargs)


def test_status_follows_the_tokens_and_an_end_is_not_reported_over_unread_ones():
    queue = new_queue()
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
    queue = new_queue()
    put(queue, 65)
    finish(queue, FinishReason.INTERRUPTED)
    assert queue.GenerateStatus() is GenerateRequestStatus.GenerateInterrupted


def test_time_out_is_none_and_loses_nothing():
    queue = new_queue()
    assert queue.GetWithTimeout(5) is None
    put(queue, 65)
    assert queue.GetWithTimeout(5).ids_from_generate == [65]
    assert queue.GetNoWait().ids_from_generate == []


def test_logprobs_prefixes_and_statistics():
    queue = new_queue(num_prompt_tokens=40, arrival=time.monotonic() - 1.0)
    queue.stream.num_cached_tokens = 16
    queue.stream.times.first_scheduled = time.monotonic() - 0.5
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
    assert info["generated_token_length"] == queue.GeneratedLength() == 2
    assert 40 <= info["context_tps"] <= 48
    assert info["finished_time"] >= info["last_token_time"] >= info["first_token_time"] > info["arrival_time"]
    assert abs(info["finished_time"] - time.time() * 1000) < 1000
    assert all(isinstance(value, int) for value in info.values())


def test_prefixes_on_a_gpu_count_there():
    queue = new_queue(num_prompt_tokens=40, on_gpu=True)
    queue.stream.num_cached_tokens = 32
    elements = queue.GetNoWait()
    assert (elements.prefix_len_gpu, elements.prefix_len_cpu) == (32, 0)
