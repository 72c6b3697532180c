"""RequestTimes: when things happened to a request, and DashInfer's statistics made from it."""

from time import monotonic, time

import msgspec

_EPOCH = time() - monotonic()
"""Moment of the monotonic clock's zero, in seconds since the epoch."""


class RequestTimes(msgspec.Struct):
    """Moments of one request, in seconds on the monotonic clock; None until they happen.

    Written by the engine.
    """

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None


def request_stat_info(times: RequestTimes, prompt_length: int, cached: int, generated: int) -> dict[str, int]:
    """DashInfer's keys of `RequestStatInfo()`; what has not happened yet is 0."""

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
