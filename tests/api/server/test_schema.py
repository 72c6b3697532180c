"""The server keeps to its own description, whatever it is sent: schemathesis over every documented route.

MILLSTREAM_SCHEMA_EXAMPLES sets the examples per operation and server: 6 in .ci/run, 200 for a long run.
"""

import asyncio
import logging
import os
import threading
from contextlib import contextmanager

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig

from millstream.api.server.app import create_app
from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.api.server.metrics import ServerMetrics
from millstream.api.server.service import ModelService
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig

EXAMPLES = int(os.environ.get("MILLSTREAM_SCHEMA_EXAMPLES", "3"))
MAX_LENGTH = 48
"""Of both models, so that whatever is asked for ends soon."""

CHECKS = {
    # A request may ask for less time than there is, or for more memory.
    "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504, 507]},
    "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 413, 415, 429]},
    # What a schema allows may still be refused: a prompt too long, a token outside of the vocabulary, …
    "positive_data_acceptance": {"enabled": False},
}

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
OPEN = ServerConfig()
GUARDED = ServerConfig(admin_key="secret", api_keys=(ApiKey(name="ann", key="k1"),), chat_template=TEMPLATE)
ADMIN = {"Authorization": "Bearer secret"}


def description(config):
    engine = AsyncEngine()
    metrics = ServerMetrics(engine, config)
    return create_app(ModelService(engine, metrics), config, metrics).openapi()


def schema_of(config):
    found = SchemathesisConfig.from_dict(
        {
            "generation": {"deterministic": True, "mode": "all", "max-examples": EXAMPLES},
            "checks": CHECKS,
        }
    )
    return schemathesis.openapi.from_dict(description(config), config=found)


bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def in_a_thread(make):
    """The URL of a server that runs in a thread of its own."""
    started, over, url = threading.Event(), None, None

    async def run():
        nonlocal over, url
        over = asyncio.Event()
        async with make() as server:
            url = server.url
            loaded = server.service.load

            async def load_small(config, **options):
                small = {"num_blocks": 16, "max_num_seqs": 2, "max_num_batched_tokens": 16, "max_length": 16}
                return await loaded(msgspec.structs.replace(config, **small), **options)

            server.service.load = load_small  # whatever size is asked for
            started.set()
            await over.wait()
            await server.all_is_free()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert started.wait(60)
    yield url
    loop.call_soon_threadsafe(over.set)
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def guarded_url(serve, fake):
    backend = FakeBackend(vocab_size=200, max_length=MAX_LENGTH)
    model = fake(backend=backend, max_length=MAX_LENGTH)
    defaults = {"backend": FakeBackend(vocab_size=200, max_length=MAX_LENGTH)}
    with in_a_thread(lambda: serve(model, config=GUARDED, defaults=defaults)) as url:
        yield url


@pytest.fixture(scope="module")
def open_url(serve):
    model = ModelConfig(model="pyhelp", max_length=MAX_LENGTH, num_blocks=64)
    with in_a_thread(lambda: serve(model, config=OPEN)) as url:
        yield url


def check(case, url, caplog, **options):
    case.call_and_validate(base_url=url, timeout=60, **options)
    failed = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert failed == []


guarded = schema_of(GUARDED)
# Without an admin key the server refuses these before it looks at anything else.
opened = schema_of(OPEN).exclude(path=["/load", "/unload"])


@guarded.parametrize()
@bounded
def test_a_guarded_server_keeps_to_its_description(case, guarded_url, caplog):
    check(case, guarded_url, caplog, headers=ADMIN)


@opened.parametrize()
@bounded
def test_an_open_server_keeps_to_its_description(case, open_url, caplog):
    check(case, open_url, caplog)


def operations(found):
    return [
        (method, path, operation)
        for path, item in found["paths"].items()
        for method, operation in item.items()
    ]


def test_every_operation_says_what_it_is():
    found = description(GUARDED)
    described = {tag["name"] for tag in found["tags"]}
    names = [operation["operationId"] for _, _, operation in operations(found)]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    for method, path, operation in operations(found):
        assert operation["summary"] and operation["description"], (method, path)
        assert len(operation["summary"]) < 100, (method, path)
        assert set(operation["tags"]) <= described, (method, path)
        assert "422" not in operation["responses"]


def test_bodies_are_described_with_examples_and_required_fields():
    found = description(GUARDED)
    bodies = {}
    for method, path, operation in operations(found):
        if method == "post" and "requestBody" in operation:
            assert operation["requestBody"]["required"]
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = found["components"]["schemas"][reference.rpartition("/")[2]]
            bodies[path] = schema
            assert schema["description"] and schema["examples"], path
            assert {"400", "413", "415"} <= set(operation["responses"]), path
    assert bodies["/v1/chat/completions"]["required"] == ["messages"]
    assert bodies["/v1/completions"]["required"] == ["prompt"]
    fields = bodies["/v1/chat/completions"]["properties"]
    assert fields["min_p"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert fields["max_completion_tokens"]["description"].startswith("Longest answer in tokens")


def test_keys_are_described_where_they_are_asked_for():
    guarded, opened = description(GUARDED), description(OPEN)
    assert guarded["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert "securitySchemes" not in opened["components"]
    secured = {path for _, path, operation in operations(guarded) if "security" in operation}
    assert {"/v1/chat/completions", "/load", "/old/generate"} <= secured
    assert not secured & {"/health", "/ready", "/version", "/metrics"}
    for _, path, operation in operations(guarded):
        assert ("401" in operation["responses"]) == ("security" in operation), path
    for _, path, operation in operations(opened):
        assert "security" not in operation and "401" not in operation["responses"], path


def test_errors_are_described_in_openai_s_envelope():
    for _, path, operation in operations(description(GUARDED)):
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")) and path not in ("/health", "/ready"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)
                assert response["description"]
