"""Traces of requests for OpenTelemetry; nothing of it is imported unless an endpoint is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...engine import RequestTimes
from ...errors import InvalidArgument, NotSupported
from .middleware.facts import RequestFacts, request_facts
from .middleware.scope import is_observed, request_state, tenant_of

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, Tracer

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
"""Path -> OpenTelemetry's word for what is done there."""


class Tracing:
    """Where spans go, from its making to `close`."""

    def __init__(self, provider: TracerProvider, propagator: TextMapPropagator) -> None:
        self._provider = provider
        self.tracer: Tracer = provider.get_tracer("millstream")
        self.propagator = propagator

    def close(self) -> None:
        """Send what is still here."""
        self._provider.shutdown()


def start_tracing(endpoint: str) -> Tracing:
    """Send spans by OTLP over HTTP to an endpoint such as http://127.0.0.1:4318/v1/traces, in batches.

    Raises:
        InvalidArgument: the endpoint is no URL.
        NotSupported: OpenTelemetry is not installed; says how to install it.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidArgument("otlp_traces_endpoint", endpoint, "an http:// or https:// URL")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise NotSupported(
            "traces need OpenTelemetry: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        ) from error
    return tracing_to(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def tracing_to(processor: SpanProcessor) -> Tracing:
    """Give spans to any processor of OpenTelemetry's."""
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    from ...version import __version__

    resource = Resource.create({SERVICE_NAME: "millstream", SERVICE_VERSION: __version__})
    # The process's own exit calls `close`; an exit hook of the library's would keep a second reference.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return Tracing(provider, TraceContextTextMapPropagator())


class RequestSpans:
    """ASGI middleware: one span per request, below the one its `traceparent` header names.

    Attributes are those of the semantic conventions for HTTP servers and generative AI; latencies are in
    seconds, under the names that vLLM made known. No prompt and no output is among them.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_observed(scope["path"]):
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span = self._start(scope)
        try:
            await self._app(scope, receive, send_noted)
        except BaseException as error:
            span.record_exception(error)
            raise
        finally:
            _describe(span, scope, status)
            span.end()

    def _start(self, scope: Scope) -> Span:
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        parent = self._tracing.propagator.extract(carrier)
        method, path = scope["method"], scope["path"]
        attributes = {"http.request.method": method, "url.path": path}
        if (operation := _OPERATIONS.get(path)) is not None:
            attributes["gen_ai.operation.name"] = operation
            attributes["gen_ai.provider.name"] = "millstream"
        name = operation or f"{method} {path}"
        return self._tracing.tracer.start_span(
            name, context=parent, kind=SpanKind.SERVER, attributes=attributes
        )


def _describe(span: Span, scope: Scope, status: int | None) -> None:
    """What is known of a request at its end."""
    from opentelemetry.trace import StatusCode

    facts = request_facts(scope)
    attributes: dict[str, str | int | float | tuple[str, ...] | None] = {
        "http.response.status_code": status,
        "millstream.request_id": request_state(scope).get("request_id"),
        "millstream.tenant": tenant_of(scope).name or None,
        "gen_ai.request.model": facts.model,
        "gen_ai.response.model": facts.model if facts.times else None,
        "gen_ai.usage.input_tokens": facts.prompt_tokens,
        "gen_ai.usage.output_tokens": facts.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": facts.cached_tokens,
        "gen_ai.response.finish_reasons": facts.finish_reasons or None,
        **_latencies(facts),
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    operation = _OPERATIONS.get(scope["path"])
    if operation is not None and facts.model is not None:
        span.update_name(f"{operation} {facts.model}")
    if status is None or status >= 500:
        span.set_status(StatusCode.ERROR)


def _latencies(facts: RequestFacts) -> dict[str, float | None]:
    """Seconds from the first choice's arrival on; the earliest choice counts."""

    def first(moments: list[float]) -> float | None:
        return min(moments) - arrival if moments else None

    if not facts.times:
        return {}
    arrival = min(times.arrival for times in facts.times)
    return {
        "gen_ai.latency.time_in_queue": first(_known(facts.times, "first_scheduled")),
        "gen_ai.latency.time_to_first_token": first(_known(facts.times, "first_token")),
        "gen_ai.latency.e2e": _last(facts.times, arrival),
    }


def _known(all_times: tuple[RequestTimes, ...], field: str) -> list[float]:
    return [moment for times in all_times if (moment := getattr(times, field)) is not None]


def _last(all_times: tuple[RequestTimes, ...], arrival: float) -> float | None:
    ends = _known(all_times, "finished")
    return max(ends) - arrival if ends else None
