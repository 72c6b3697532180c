"""Servers on a port of this machine, in the test's own event loop."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from millstream.api.server.app import create_app
from millstream.api.server.config import ServerConfig
from millstream.api.server.metrics import ServerMetrics
from millstream.api.server.service import ModelService
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig

from ...sse import async_stream_events
from ...waiting import HANG_SECONDS, until


class LiveServer:
    """A running server; `client` talks to it, `url` is where others can."""

    def __init__(self, engine, service, app, url, client):
        self.engine = engine
        self.service = service
        self.app = app
        self.url = url
        self.client = client

    async def post(self, path, /, headers=None, **body):
        return await self.client.post(path, json=body, headers=headers)

    async def events(self, path, /, **body):
        """Data of the server-sent events that answer a request for a stream."""
        return await self.events_of(path, **body, stream=True)

    async def events_of(self, path, /, **body):
        """Data of the server-sent events that answer a request."""
        async with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, await response.aread()
            return [data async for data in async_stream_events(response.aiter_bytes())]

    def stats(self, name=None):
        return self.engine.stats(self.service.get(name).name)

    async def all_is_free(self, name=None):
        """Wait until nothing runs, waits or holds a block."""

        def is_free():
            stats = self.stats(name)
            return not (stats.running or stats.waiting or stats.held_blocks)

        await until(is_free)


@asynccontextmanager
async def live_server(*models, config=None, defaults=None):
    """A server over these ModelConfigs; the bundled model when there are none."""
    config = config or ServerConfig()
    models = models or (ModelConfig(model="pyhelp", max_length=512, num_blocks=256),)
    async with AsyncEngine() as engine:
        metrics = ServerMetrics(engine, config)
        service = ModelService(engine, metrics, chat_template=config.chat_template, defaults=defaults)
        for model in models:
            await service.load(model)
        app = create_app(service, config, metrics)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, lifespan="off", http="httptools", ws="none")
        )
        task = asyncio.create_task(server._serve())
        try:
            while not server.started:
                await asyncio.sleep(0.002)
            url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            async with httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS) as client:
                yield LiveServer(engine, service, app, url, client)
        finally:
            server.should_exit = True
            await task


def fake_model(name="fake", *, backend=None, **config):
    """A model without weights: its tokens follow from its prompt alone."""
    backend = backend or FakeBackend(vocab_size=200, max_length=config.get("max_length", 512))
    fields = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_length": 512, "num_blocks": 256, **config}
    return ModelConfig(model=name, backend=backend, **fields)


@pytest.fixture(scope="session")
def serve():
    return live_server


@pytest.fixture(scope="session")
def fake():
    return fake_model


@pytest.fixture
async def serve_once():
    async with live_server(fake_model()) as server:
        yield server


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_template():
    return CHAT
