"""Live servers for the clients that people use, and those clients."""

import asyncio

import pytest
from openai import AsyncOpenAI, OpenAI

from millstream.backends.fake import FakeBackend

from ... import waiting
from ...waiting import HANG_SECONDS
from ..server.conftest import fake_model, live_server


@pytest.fixture
def serve():
    return live_server


@pytest.fixture
async def server():
    """The bundled model, behind HTTP."""
    async with live_server() as server:
        yield server


@pytest.fixture
def slow():
    """A model without weights whose steps take a hundredth of a second."""

    def make(name="slow", *, step_time=0.01, **config):
        return fake_model(
            name, backend=FakeBackend(vocab_size=200, max_length=512, step_time=step_time), **config
        )

    return make


@pytest.fixture
def failing():
    """A model whose worker fails once a request has as many tokens as said."""

    def make(name="failing", *, tokens):
        def fail(batch):
            if any(piece.start >= tokens for piece in batch.chunks):
                raise RuntimeError("told to")

        return fake_model(name, backend=FakeBackend(vocab_size=200, max_length=512, on_batch=fail))

    return make


@pytest.fixture
def connect():
    """OpenAI's asynchronous client of a server; it does not retry unless it is told to."""

    def make(server, **options):
        return AsyncOpenAI(
            **{
                "base_url": f"{server.url}/v1",
                "api_key": "none",
                "max_retries": 0,
                "timeout": HANG_SECONDS,
                **options,
            }
        )

    return make


@pytest.fixture
def in_thread():
    """Runs `work(client)` with OpenAI's synchronous client, beside the server's event loop."""

    def run(server, work):
        def call():
            with OpenAI(
                base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=HANG_SECONDS
            ) as client:
                return work(client)

        return asyncio.to_thread(call)

    return run


@pytest.fixture
def until():
    """Waits for a condition on the server, which runs in the same event loop."""

    return waiting.until
