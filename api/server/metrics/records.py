"""What the server remembers about requests: counts and histograms, per model, tenant and route.

Everything here is written and read on the server's event loop, so nothing is locked.
"""

from collections.abc import Mapping
from enum import Enum

import msgspec

from ....engine import EngineStats, OutputStream
from ....engine.histogram import Distribution, Histogram
from ....errors import InvalidArgument
from ....scheduler import FinishReason

Bounds = tuple[float, ...]


class Quantity(Enum):
    """What is measured of each request, once, when it ends. Times are in seconds.

    A time enters when what it measures was completed, whatever came after; of cancelled requests no whole
    duration enters, as it would be the client's patience.
    """

    QUEUE_TIME = "queue time"
    """From arrival to the first step, or to the end of a request that no step has touched."""
    PREFILL_TIME = "prefill time"
    """From the first step to the first token."""
    DECODE_TIME = "decode time"
    """From the first token to the last, of two or more."""
    INFERENCE_TIME = "inference time"
    """From the first step to the end."""
    DURATION = "duration"
    """From arrival to the end."""
    TIME_TO_FIRST_TOKEN = "time to first token"
    """From arrival."""
    TIME_PER_OUTPUT_TOKEN = "time per output token"
    """Mean gap between a request's tokens; one value a request."""
    INTER_TOKEN_LATENCY = "inter-token latency"
    """The same mean, once for every gap."""
    PROMPT_TOKENS = "prompt tokens"
    GENERATED_TOKENS = "generated tokens"


class TenantRecord:
    """Counts of one tenant's requests to one model."""

    __slots__ = ("finished", "generated_tokens", "prompt_tokens", "prompts")

    def __init__(self) -> None:
        self.prompts = 0
        self.prompt_tokens = 0
        """Of each prompt once, however many samples it has; cached ones included."""
        self.generated_tokens = 0
        self.finished = dict.fromkeys(FinishReason, 0)
        """Ended samples."""


class ModelRecord:
    """What is known of one model's requests that have ended."""

    def __init__(self, bounds: Mapping[Quantity, Bounds]) -> None:
        """`bounds` are the buckets' upper bounds of each quantity."""
        self.tenants: dict[str, TenantRecord] = {}
        self._histograms = {quantity: Histogram(bounds[quantity]) for quantity in Quantity}

    def distribution(self, quantity: Quantity) -> Distribution:
        """A quantity's values so far."""
        return self._histograms[quantity].snapshot()

    def add(self, tenant: str, queue: OutputStream, *, counts_prompt: bool) -> None:
        """Book a sample that has ended.

        Raises:
            InvalidArgument: it has not.
        """
        reason = queue.finish_reason
        if reason is None:
            raise InvalidArgument("queue", queue, "the queue of a request that has ended")
        record = self.tenants.get(tenant)
        if record is None:
            record = self.tenants[tenant] = TenantRecord()
        record.finished[reason] += 1
        record.generated_tokens += queue.num_output_tokens
        if counts_prompt:
            record.prompts += 1
            record.prompt_tokens += queue.num_prompt_tokens
            self._histograms[Quantity.PROMPT_TOKENS].observe(queue.num_prompt_tokens)
        self._observe_times(queue, cancelled=reason is FinishReason.CANCELLED)

    def _observe_times(self, queue: OutputStream, *, cancelled: bool) -> None:
        times, histograms = queue.times, self._histograms
        finished = times.arrival if times.finished is None else times.finished
        scheduled, first, last = times.first_scheduled, times.first_token, times.last_token
        until = finished if scheduled is None else scheduled
        histograms[Quantity.QUEUE_TIME].observe(until - times.arrival)
        if first is not None and last is not None:
            generated = queue.num_output_tokens
            histograms[Quantity.GENERATED_TOKENS].observe(generated)
            histograms[Quantity.TIME_TO_FIRST_TOKEN].observe(first - times.arrival)
            if scheduled is not None:
                histograms[Quantity.PREFILL_TIME].observe(first - scheduled)
            if generated > 1:
                gaps = generated - 1
                mean = (last - first) / gaps
                histograms[Quantity.DECODE_TIME].observe(last - first)
                histograms[Quantity.TIME_PER_OUTPUT_TOKEN].observe(mean)
                histograms[Quantity.INTER_TOKEN_LATENCY].observe(mean, gaps)
        if not cancelled:
            histograms[Quantity.DURATION].observe(finished - times.arrival)
            if scheduled is not None:
                histograms[Quantity.INFERENCE_TIME].observe(finished - scheduled)


class ModelView(msgspec.Struct, frozen=True):
    """One installed model at the moment of a scrape."""

    name: str
    stats: EngineStats
    """Its counters go on where those of an earlier life of the model ended."""
    record: ModelRecord


class RouteRecord:
    """Responses of one method and route."""

    __slots__ = ("seconds", "statuses")

    def __init__(self, bounds: Bounds) -> None:
        self.statuses: dict[int, int] = {}
        self.seconds = Histogram(bounds)


class ServerRecord:
    """What is known of the server as a whole."""

    def __init__(self, version: str, http_bounds: Bounds) -> None:
        self.version = version
        self.refused: dict[tuple[str, ...], int] = {}
        """(model, reason) -> requests."""
        self.routes: dict[tuple[str, str], RouteRecord] = {}
        """(method, route) -> responses."""
        self._http_bounds = http_bounds

    def refuse(self, model: str, reason: str) -> None:
        """Book a request that was not served."""
        key = (model, reason)
        self.refused[key] = self.refused.get(key, 0) + 1

    def respond(self, method: str, route: str, status: int, seconds: float) -> None:
        """Book a response."""
        record = self.routes.get((method, route))
        if record is None:
            record = self.routes[method, route] = RouteRecord(self._http_bounds)
        record.statuses[status] = record.statuses.get(status, 0) + 1
        record.seconds.observe(seconds)
