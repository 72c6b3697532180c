"""Spans of requests: attributes, parents, nothing of a prompt, and what happens without OpenTelemetry."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from millstream.api.server.generation import Generation
from millstream.api.server.keys import Tenant
from millstream.api.server.middleware.scope import request_state
from millstream.api.server.service import ModelService
from millstream.api.server.tracing import RequestSpans, start_tracing, tracing_to
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions
from millstream.errors import InvalidArgument, NotSupported
from millstream.scheduler import SamplingParams

from .middleware.asgi import Exchange, answer_ok
from .serving_program import NoObserver

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans():
    pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = tracing_to(SimpleSpanProcessor(exporter))
    yield tracing, exporter.get_finished_spans
    tracing.close()


async def test_a_generation_is_described_by_the_semantic_conventions(spans):
    tracing, finished = spans
    async with AsyncEngine() as engine:
        service = ModelService(engine, NoObserver())
        backend = FakeBackend(vocab_size=200)
        await service.load(
            ModelConfig(model="m", backend=backend, max_num_seqs=4, max_num_batched_tokens=64, max_length=256)
        )

        async def route(scope, receive, send):
            state = request_state(scope)
            state["tenant"] = Tenant("acme")
            params = SamplingParams(temperature=0, max_new_tokens=5, n=2)
            generation = await Generation.start(
                service, service.target("m"), [[7] * 20], params, RequestOptions(tenant="acme")
            )
            state["generation"] = generation
            with generation:
                await generation.outputs()
            await answer_ok(scope, receive, send)

        app = RequestSpans(route, tracing)
        await Exchange(app, "/v1/chat/completions", "POST", headers=[("traceparent", PARENT)]).run()
    (span,) = finished()
    assert span.name == "chat m" and span.kind.name == "SERVER"
    assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(span.parent.span_id, "016x") == PARENT.split("-")[2]
    told = dict(span.attributes)
    queue, first, whole = (
        told.pop(f"gen_ai.latency.{name}") for name in ("time_in_queue", "time_to_first_token", "e2e")
    )
    assert 0 <= queue <= first <= whole
    assert told == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "millstream.tenant": "acme",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "millstream",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("length", "length"),
    }


async def test_other_requests_have_spans_and_probes_have_none(spans):
    tracing, finished = spans
    app = RequestSpans(answer_ok, tracing)
    for path in ("/health", "/metrics", "/v1/models"):
        await Exchange(app, path, headers=[("traceparent", "nonsense")]).run()
    (span,) = finished()
    assert span.name == "GET /v1/models" and span.parent is None
    assert span.status.status_code.name == "UNSET"


async def test_a_failure_is_an_error_of_its_span(spans):
    tracing, finished = spans

    async def fail(scope, receive, send):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        await Exchange(RequestSpans(fail, tracing), "/v1/models").run()
    (span,) = finished()
    assert span.status.status_code.name == "ERROR" and span.events[0].name == "exception"


async def test_spans_arrive_at_an_endpoint():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra 'otel' is not installed")
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=collector.serve_forever, daemon=True).start()
    tracing = start_tracing(f"http://127.0.0.1:{collector.server_port}/v1/traces")
    await Exchange(RequestSpans(answer_ok, tracing), "/v1/models").run()
    tracing.close()
    collector.shutdown()
    collector.server_close()
    ((path, body),) = received
    assert path == "/v1/traces" and b"GET /v1/models" in body and b"millstream" in body


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(NotSupported, match=r"pip install opentelemetry-sdk"):
        start_tracing("http://127.0.0.1:4318/v1/traces")


def test_an_endpoint_that_is_no_url_is_refused():
    with pytest.raises(InvalidArgument, match="otlp_traces_endpoint is 'localhost:4318'"):
        start_tracing("localhost:4318")


def test_nothing_of_it_is_imported_before_it_is_asked_for():
    code = (
        "import sys, millstream.api.server.tracing\n"
        "sys.exit(any(m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
