"""ResultQueue: DashInfer's view of a request's output stream."""

from enum import Enum
from time import monotonic, time

import msgspec

from ..engine import FinishReason, Output, OutputStream, RequestTimes
from ..engine import RequestHandle as EngineHandle

_EPOCH = time() - monotonic()
"""Moment of the monotonic clock's zero, in seconds since the epoch."""


class GenerateRequestStatus(Enum):
    """States of a request."""

    Init = 0
    ContextFinished = 1
    Generating = 2
    GenerateFinished = 3
    GenerateInterrupted = 4
    InternalError = 5


END_STATUS = {
    FinishReason.STOP: GenerateRequestStatus.GenerateFinished,
    FinishReason.LENGTH: GenerateRequestStatus.GenerateFinished,
    FinishReason.CANCELLED: GenerateRequestStatus.GenerateInterrupted,
    FinishReason.TIMEOUT: GenerateRequestStatus.GenerateInterrupted,
    FinishReason.QUEUE_TIMEOUT: GenerateRequestStatus.GenerateInterrupted,
    FinishReason.INTERRUPTED: GenerateRequestStatus.GenerateInterrupted,
    FinishReason.ERROR: GenerateRequestStatus.InternalError,
}


class GeneratedElements(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens produced since the previous read, in order, with what was asked for about them."""

    ids_from_generate: list[int]
    text: str
    """Text that has become certain (Millstream's own; DashInfer hands out ids alone)."""
    log_probs_list: list[list[tuple[int, float]]]
    """[tokens][top_logprobs] pairs of (token id, log-probability), best first; empty unless asked for."""
    token_logprobs_list: list[float]
    """Log-probability of each token; empty unless asked for."""
    tensors_from_model_inference: list[dict[str, object]] = []
    """Always empty: configurations that ask for tensors are refused."""
    prefix_cache_len: int
    """Prompt tokens that were found in the prefix cache."""
    prefix_len_gpu: int
    prefix_len_cpu: int
    finish_reason: FinishReason | None
    """Set in the read that reaches the end (Millstream's own)."""


class RequestHandle:
    """One request; DashInfer's is opaque, this one knows the queues of all samples."""

    __slots__ = ("queues", "request", "request_id")

    def __init__(self, request: EngineHandle, *, on_gpu: bool) -> None:
        self.request = request
        self.request_id = request.request_id
        self.queues = tuple(ResultQueue(stream, on_gpu=on_gpu) for stream in request.streams)


class ResultQueue:
    """Output of one request, for threads; each token is handed to exactly one read."""

    def __init__(self, stream: OutputStream, *, on_gpu: bool) -> None:
        self.stream = stream
        """The engine's own view, for coroutines, too."""
        self._on_gpu = on_gpu
        self._reading = False

    def GenerateStatus(self) -> GenerateRequestStatus:
        """Present status; never blocks.

        Once the reader has begun to read, an end is reported only when nothing is left to read, so that a
        loop over `Get` that breaks at the end loses no token.
        """
        stream = self.stream
        if stream.finish_reason is not None and (stream.empty or not self._reading):
            return END_STATUS[stream.finish_reason]
        if stream.num_output_tokens == 0:
            return GenerateRequestStatus.Init
        if stream.num_output_tokens == 1:
            return GenerateRequestStatus.ContextFinished
        return GenerateRequestStatus.Generating

    def GeneratedLength(self) -> int:
        """Tokens generated so far, read or not."""
        return self.stream.num_output_tokens

    def RequestStatInfo(self) -> dict[str, int]:
        """Times in milliseconds, lengths in tokens, rates in tokens per second."""
        stream = self.stream
        return request_stat_info(
            stream.times, stream.num_prompt_tokens, stream.num_cached_tokens, stream.num_output_tokens
        )

    def Get(self) -> GeneratedElements:
        """Everything produced since the previous read; blocks until there is something.

        After the end, with nothing left, the elements are empty.
        """
        self._reading = True
        return self._elements(self.stream.get())

    def GetWithTimeout(self, timeout_ms: float) -> GeneratedElements | None:
        """Like `Get`, but None after `timeout_ms` milliseconds without a token; 0 or less waits for ever."""
        self._reading = True
        try:
            return self._elements(self.stream.get(timeout_ms / 1000 if timeout_ms > 0 else None))
        except TimeoutError:
            return None

    def GetNoWait(self) -> GeneratedElements:
        """Everything produced since the previous read, which may be nothing; never blocks."""
        self._reading = True
        return self._elements(self.stream.get_nowait())

    def _elements(self, output: Output) -> GeneratedElements:
        cached = self.stream.num_cached_tokens
        return GeneratedElements(
            ids_from_generate=output.token_ids,
            text=output.text,
            log_probs_list=[list(scores.top) for scores in output.logprobs],
            token_logprobs_list=[scores.logprob for scores in output.logprobs],
            prefix_cache_len=cached,
            prefix_len_gpu=cached if self._on_gpu else 0,
            prefix_len_cpu=0 if self._on_gpu else cached,
            finish_reason=output.finish_reason,
        )


def request_stat_info(times: RequestTimes, prompt_length: int, cached: int, generated: int) -> dict[str, int]:
    """The keys of `RequestStatInfo()`; what has not happened yet is 0."""

    def stamp(moment: float | None) -> int:
        return 0 if moment is None else round((_EPOCH + moment) * 1000)

    def span(start: float | None, end: float | None) -> float:
        return 0.0 if start is None or end is None else end - start

    prefill = span(times.first_scheduled, times.first_token)
    decode = span(times.first_token, times.last_token)
    return {
        "arrival_time": stamp(times.arrival),
        "first_token_time": stamp(times.first_token),
        "last_token_time": stamp(times.last_token),
        "time_to_first_token": round(span(times.arrival, times.first_token) * 1000),
        "time_in_queue": round(span(times.arrival, times.first_scheduled) * 1000),
        "finished_time": stamp(times.finished),
        "context_token_length": prompt_length,
        "generated_token_length": generated,
        "context_cached_length": cached,
        "context_tps": round((prompt_length - cached) / prefill) if prefill else 0,
        "generate_tps": round((generated - 1) / decode) if decode else 0,
    }
