"""GET /metrics over a fake engine, read with Prometheus' own parsers."""

import asyncio
import re
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.api.server.metrics import ServerMetrics, refusal_of, route_of
from millstream.api.server.metrics.documentation import ALL_METRICS
from millstream.api.server.metrics.records import ModelRecord, Quantity
from millstream.api.server.routes.metrics import router
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, OutputStream, SamplingParams
from millstream.engine.histogram import Histogram
from millstream.engine.output_stream import Wakeups
from millstream.errors import InvalidArgument
from millstream.scheduler import FinishReason

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"


class Server:
    """An engine, its metrics and a client for them."""

    def __init__(self, engine, metrics, client):
        self.engine, self.metrics, self.client = engine, metrics, client

    async def scrape(self):
        """{(sample name, labels): value}"""
        response = await self.client.get("/metrics")
        assert response.status_code == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for metric in parse_text(response.text)
            for sample in metric.samples
        }

    async def value(self, sample_name, **labels):
        return (await self.scrape()).get((sample_name, frozenset(labels.items())))

    async def generate(self, model="m", tenant="", prompt=range(1, 33), **params):
        params = SamplingParams(temperature=0, **{"max_new_tokens": 5, **params})
        handle, _ = await self.engine.start_request(model, list(prompt), params)
        for sample, queue in enumerate(handle.streams):
            await queue.await_finished()
            self.metrics.request_finished(model, tenant, queue, sample=sample)

    async def start(self, name="m", **config):
        config = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_length": 512, **config}
        backend = config.pop("backend", None) or FakeBackend(vocab_size=200)
        await self.engine.install_model(ModelConfig(model=name, backend=backend, **config))
        await self.engine.start_model(name)

    async def stop(self, name="m"):
        await self.engine.stop_model(name)
        await self.engine.release_model(name)


@asynccontextmanager
async def serving(*models, **config):
    async with AsyncEngine() as engine:
        app = FastAPI()
        app.state.metrics = ServerMetrics(engine, ServerConfig(**config))
        app.include_router(router)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            server = Server(engine, app.state.metrics, client)
            for name in models:
                await server.start(name)
            yield server


def ended(*, arrival=0.0, scheduled=None, tokens=(), finished, reason=FinishReason.STOP, prompt=10):
    """The queue of a request with these moments."""
    queue = OutputStream(num_prompt_tokens=prompt, arrival=arrival)
    queue.times.first_scheduled = scheduled
    for moment in tokens:
        queue.put(1, "", None, moment, Wakeups())
    queue.finish(reason, Wakeups(), finished)
    return queue


# The exposition


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS])
async def test_every_metric_of_the_table_is_shown_as_the_table_says(accept):
    async with serving("m", vllm_metrics=True) as server:
        await server.generate()
        server.metrics.request_refused("m", "invalid")
        server.metrics.http_finished("POST", "/v1/completions", 200, 0.1)
        response = await server.client.get("/metrics", headers={"accept": accept})
    openmetrics = accept == OPENMETRICS
    wanted = "application/openmetrics-text" if openmetrics else "text/plain"
    assert response.headers["content-type"].startswith(wanted)
    parse = parse_openmetrics if openmetrics else parse_text
    shown = {metric.name: metric for metric in parse(response.text)}
    for spec in ALL_METRICS:
        if spec.where == "with NVIDIA GPUs":
            continue
        # The parsers drop a counter's suffix; the text format's does so for a histogram of that name as well.
        metric = shown.pop(spec.name, None) or shown.pop(spec.name.removesuffix("_total"))
        assert metric.type == spec.kind.value, spec.name
        assert metric.documentation == spec.help
        assert metric.samples, spec.name
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), spec.name
        bounds = sorted({float(s.labels["le"]) for s in metric.samples if s.name.endswith("_bucket")})
        assert bounds == ([*spec.buckets, float("inf")] if spec.buckets else [])
    assert not {name for name in shown if not name.startswith(("llm_gpu", "millstream_gpu"))}


async def test_vllm_names_are_offered_when_asked_for_only():
    async with serving("m") as server:
        await server.generate()
        assert "vllm:" not in (await server.client.get("/metrics")).text


async def test_label_values_are_escaped():
    name = 'a"b\\c\nd'
    async with serving(name) as server:
        await server.generate(name)
        assert await server.value("llm_prompts_total", model=name) == 1
        text = (await server.client.get("/metrics", headers={"accept": OPENMETRICS})).text
    (metric,) = [m for m in parse_openmetrics(text) if m.name == "llm_prompts"]
    assert metric.samples[0].labels == {"model": name}


async def test_two_servers_share_nothing():
    async with serving("m") as one, serving("m") as other:
        await one.generate()
        assert await one.value("llm_prompts_total", model="m") == 1
        assert await other.value("llm_prompts_total", model="m") == 0


# What is counted


async def test_requests_are_counted_with_their_tokens_reasons_and_tenants():
    keys = (ApiKey(name="alice", key="a" * 20), ApiKey(name="bob", key="b" * 20))
    async with serving("m", "n", api_keys=keys) as server:
        await server.generate("m", "alice", n=3)
        await server.generate("m", "bob")
        await server.generate("n", "bob", max_new_tokens=2)
        await server.generate("n", "somebody who has no key")
        scraped = await server.scrape()

    def value(name, **labels):
        return scraped.get((name, frozenset(labels.items())))

    assert value("llm_prompts_total", model="m") == 2
    assert value("llm_prompt_tokens_total", model="m") == 64
    assert value("llm_tokens_generated_total", model="m") == 20
    finished = "millstream_requests_finished_total"
    assert value(finished, model="m", tenant="alice", reason="length") == 3
    assert value(finished, model="m", tenant="bob", reason="length") == 1
    assert value(finished, model="m", tenant="bob", reason="error") == 0
    assert value(finished, model="n", tenant="", reason="length") == 1
    assert value("millstream_tenant_generated_tokens_total", model="m", tenant="alice") == 15
    assert value("millstream_tenant_prompt_tokens_total", model="m", tenant="alice") == 32
    assert value("millstream_request_generated_tokens_count", model="m") == 4
    assert value("millstream_request_prompt_tokens_sum", model="m") == 64


async def test_the_engine_is_asked_at_the_scrape():
    async with serving("m", vllm_metrics=True) as server:
        await server.generate(prompt=range(1, 34))
        await server.generate(prompt=range(1, 34))
        stats = server.engine.stats("m")
        scraped = await server.scrape()

    def value(name, **labels):
        return scraped[name, frozenset({"model": "m", **labels}.items())]

    def vllm(name, **labels):
        return scraped[f"vllm:{name}", frozenset({"model_name": "m", "engine": "0", **labels}.items())]

    assert stats.prefix_hit_tokens == 32
    assert value("millstream_prefix_hit_tokens_total") == vllm("prefix_cache_hits_total") == 32
    assert value("millstream_prefix_queried_tokens_total") == vllm("prefix_cache_queries_total") == 66
    assert value("millstream_prompt_tokens_total") == stats.prompt_tokens
    assert vllm("prompt_tokens_total") == stats.prompt_tokens + 32
    assert vllm("generation_tokens_total") == 10
    assert vllm("request_success_total", finished_reason="length") == 2
    assert vllm("request_success_total", finished_reason="abort") == 0
    assert value("millstream_steps_total") == stats.steps == value("millstream_step_tokens_count")
    assert value("millstream_step_duration_seconds_count") == stats.steps
    assert value("millstream_step_sequences_total") == stats.steps
    assert value("millstream_step_tokens_sum") == stats.prompt_tokens + stats.generated_tokens - 2
    assert vllm("iteration_tokens_total_count") == stats.steps
    blocks = [value("millstream_kv_blocks", state=state) for state in ("held", "cached", "free")]
    assert sum(blocks) == stats.total_blocks
    assert blocks[0] == value("millstream_kv_usage_ratio") == 0
    assert blocks[1] == stats.cached_blocks > 0
    assert value("millstream_model_running") == 1


async def test_what_runs_and_waits_shows_while_it_does():
    computing, held = asyncio.Event(), asyncio.Event()
    async with serving() as server:
        loop = asyncio.get_running_loop()

        def hold(batch):
            loop.call_soon_threadsafe(computing.set)
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result(30)

        await server.start(backend=FakeBackend(vocab_size=200, on_batch=hold), max_num_seqs=2, warmup=False)
        params = SamplingParams(temperature=0, max_new_tokens=2)
        started = [await server.engine.start_request("m", [i] * 16, params) for i in range(5)]
        await computing.wait()
        seen = await server.scrape()
        held.set()
        for _, queue in started:
            await queue.await_finished()
    labels = frozenset({("model", "m")})
    assert seen["millstream_requests_running", labels] == 2
    assert seen["millstream_requests_waiting", labels] == 3
    assert seen["millstream_queued_tokens", labels] == 48
    assert seen["llm_active_sessions", labels] == 5
    assert seen["millstream_kv_usage_ratio", labels] > 0


async def test_a_failing_worker_is_an_error():
    def fail(batch):
        raise RuntimeError("broken")

    async with serving() as server:
        await server.start(backend=FakeBackend(vocab_size=200, on_batch=fail), warmup=False)
        await server.generate()
        assert await server.value("llm_inference_errors_total", model="m") == 1
        reason = {"model": "m", "tenant": "", "reason": "error"}
        assert await server.value("millstream_requests_finished_total", **reason) == 1


async def test_counters_go_on_when_a_model_is_loaded_again():
    async with serving("m") as server:
        names = [
            "millstream_generated_tokens_total",
            "millstream_steps_total",
            "millstream_step_tokens_count",
            "llm_tokens_generated_total",
            "llm_prompts_total",
        ]

        async def values():
            scraped = await server.scrape()
            return [scraped.get((name, frozenset({("model", "m")}))) for name in names]

        await server.generate()
        first = await values()
        await server.stop()
        assert await values() == [None] * 5
        await server.start()
        assert await values() == first
        await server.generate()
        second = await values()
        assert second == [2 * value for value in first]
        await server.generate()
        server.metrics.remember("m")  # nothing looks between this request and the next life
        await server.stop()
        await server.start()
        assert await values() == [3 * value for value in first]


async def test_a_model_that_is_stopped_and_started_between_two_scrapes_does_not_go_backwards():
    async with serving("m") as server:
        await server.generate()
        before = await server.value("millstream_generated_tokens_total", model="m")
        await server.engine.stop_model("m")
        assert await server.value("millstream_generated_tokens_total", model="m") == before
        assert await server.value("millstream_model_running", model="m") == 0
        await server.engine.start_model("m")
        await server.generate(max_new_tokens=50)
        after = await server.value("millstream_generated_tokens_total", model="m")
        assert after == before + 50


async def test_refusals_are_counted_by_reason_and_only_under_models_that_exist():
    async with serving("m") as server:
        server.metrics.request_refused("m", refusal_of(429, "queue_full"))
        server.metrics.request_refused("m", refusal_of(429, "rate_limit_exceeded"))
        for name in ("made up", "also made up", "", None):
            server.metrics.request_refused(name, refusal_of(404))
        scraped = await server.scrape()
    refused = {
        tuple(sorted(labels)): value
        for (name, labels), value in scraped.items()
        if name == "millstream_requests_refused_total"
    }
    assert refused == {
        (("model", "m"), ("reason", "queue_full")): 1,
        (("model", "m"), ("reason", "rate_limit")): 1,
        (("model", ""), ("reason", "not_found")): 4,
    }


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, None, "invalid"),
        (401, None, "unauthorised"),
        (403, None, "forbidden"),
        (404, None, "not_found"),
        (409, None, "invalid"),
        (413, None, "too_large_body"),
        (429, "queue_full", "queue_full"),
        (429, "rate_limit_exceeded", "rate_limit"),
        (422, None, "invalid"),
        (500, None, "error"),
        (501, None, "unsupported"),
        (503, "shutting_down", "draining"),
        (503, "starting", "starting"),
        (503, "model_stopped", "error"),
        (504, None, "timeout"),
    ],
)
def test_reasons_of_refusals(status, code, reason):
    assert refusal_of(status, code) == reason


async def test_responses_are_counted_by_the_templates_of_their_routes():
    seen = []

    class Watch:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(scope, receive, send)
            seen.append(route_of(scope))

    app = FastAPI()
    app.add_middleware(Watch)

    routes = APIRouter(prefix="/v1")

    @routes.get("/models/{name:path}")
    async def model(name: str) -> str:
        return name

    app.include_router(routes)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/v1/models/a", "/v1/models/b", "/made/up"):
            await client.get(path)
    assert seen == ["/v1/models/{name}", "/v1/models/{name}", ""]
    async with serving() as server:
        for route in seen:
            server.metrics.http_finished("GET", route, 200 if route else 404, 0.004)
        server.metrics.http_finished("MADEUP", "", 405, 0.1)
        scraped = await server.scrape()

    def value(name, **labels):
        return scraped["millstream_http_" + name, frozenset(labels.items())]

    assert value("requests_total", method="GET", route="/v1/models/{name}", status="200") == 2
    assert value("requests_total", method="GET", route="", status="404") == 1
    assert value("requests_total", method="other", route="", status="405") == 1
    duration = {"method": "GET", "route": "/v1/models/{name}"}
    assert value("request_duration_seconds_bucket", **duration, le="0.002") == 0
    assert value("request_duration_seconds_bucket", **duration, le="0.005") == 2


# Times of a request


async def test_a_histogram_and_its_views_agree_with_the_times_of_the_queue():
    async with serving("m", vllm_metrics=True) as server:
        server.metrics.request_finished(
            "m", "", ended(arrival=1.0, scheduled=1.5, tokens=(2.0, 2.25, 2.5, 3.0), finished=3.0)
        )
        text = (await server.client.get("/metrics")).text

    def sums(name):
        (found,) = re.findall(rf"^{name}_sum\{{.*\}} (.*)$", text, re.MULTILINE)
        (count,) = re.findall(rf"^{name}_count\{{.*\}} (.*)$", text, re.MULTILINE)
        return float(found), int(count)

    assert sums("millstream_queue_time_seconds") == (0.5, 1)
    assert sums("millstream_prefill_time_seconds") == (0.5, 1)
    assert sums("millstream_decode_time_seconds") == (1.0, 1)
    for name in ("millstream_request_duration_seconds", "vllm:e2e_request_latency_seconds"):
        assert sums(name) == (2.0, 1)
    assert sums("llm_inference_duration_seconds") == (2.0, 1)
    assert sums("vllm:request_inference_time_seconds") == (1.5, 1)
    assert sums("llm_time_to_first_token_seconds") == (1.0, 1)
    assert sums("vllm:time_to_first_token_seconds") == (1.0, 1)
    assert sums("llm_time_per_output_token_seconds") == (pytest.approx(1 / 3), 1)
    assert sums("vllm:request_time_per_output_token_seconds") == (pytest.approx(1 / 3), 1)
    assert sums("vllm:inter_token_latency_seconds") == (pytest.approx(1.0), 3)
    buckets = dict(re.findall(r'^vllm:e2e_request_latency_seconds_bucket\{.*le="(.*)"\} (.*)$', text, re.M))
    assert (buckets["1.5"], buckets["2.0"], buckets["+Inf"]) == ("0", "1", "1")


def record():
    return ModelRecord(dict.fromkeys(Quantity, (0.5, 1.0, 2.0)))


def counted(book, quantity):
    distribution = book.distribution(quantity)
    return distribution.count, distribution.sum


def test_a_cancelled_request_has_the_times_that_it_completed():
    book = record()
    cancelled = ended(scheduled=1.0, tokens=(2.0, 3.0), finished=9.0, reason=FinishReason.CANCELLED)
    book.add("", cancelled, counts_prompt=True)
    assert counted(book, Quantity.QUEUE_TIME) == (1, 1.0)
    assert counted(book, Quantity.TIME_TO_FIRST_TOKEN) == (1, 2.0)
    assert counted(book, Quantity.DECODE_TIME) == (1, 1.0)
    assert counted(book, Quantity.DURATION) == (0, 0.0)
    assert counted(book, Quantity.INFERENCE_TIME) == (0, 0.0)


def test_a_request_that_ended_in_the_queue_has_waited():
    book = record()
    book.add("", ended(finished=4.0, reason=FinishReason.QUEUE_TIMEOUT), counts_prompt=True)
    assert counted(book, Quantity.QUEUE_TIME) == (1, 4.0)
    assert counted(book, Quantity.DURATION) == (1, 4.0)
    for quantity in (Quantity.PREFILL_TIME, Quantity.TIME_TO_FIRST_TOKEN, Quantity.GENERATED_TOKENS):
        assert counted(book, quantity) == (0, 0.0)


def test_a_single_token_has_no_gap():
    book = record()
    book.add("", ended(scheduled=1.0, tokens=(2.0,), finished=2.0), counts_prompt=True)
    assert counted(book, Quantity.GENERATED_TOKENS) == (1, 1)
    for quantity in (Quantity.DECODE_TIME, Quantity.TIME_PER_OUTPUT_TOKEN, Quantity.INTER_TOKEN_LATENCY):
        assert counted(book, quantity) == (0, 0.0)


def test_a_request_that_has_not_ended_is_refused():
    with pytest.raises(InvalidArgument, match="has ended"):
        record().add("", OutputStream(num_prompt_tokens=3), counts_prompt=True)


def test_a_value_on_a_bound_is_in_its_bucket():
    histogram = Histogram((1.0, 2.0))
    for value, weight in ((0.5, 1), (1.0, 1), (1.5, 3), (2.0, 1), (2.5, 2)):
        histogram.observe(value, weight)
    seen = histogram.snapshot()
    assert seen.cumulative() == {1.0: 2, 2.0: 6}
    assert (seen.count, seen.sum) == (8, 13.0)
    assert seen.plus(seen).counts == (4, 8, 4)
    with pytest.raises(ValueError, match="bounds"):
        seen.plus(Histogram((1.0,)).snapshot())
