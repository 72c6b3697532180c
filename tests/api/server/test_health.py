"""/health, /ready and /version over the fake worker, in every state an engine can be in."""

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

import millstream
from millstream.api.server.config import ServerConfig
from millstream.api.server.draining import Drain, Phase
from millstream.api.server.routes.health import router
from millstream.api.server.service import ModelService
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, SamplingParams
from millstream.scheduler import Scheduler

from ...waiting import HANG_SECONDS
from .serving_program import NoObserver


@asynccontextmanager
async def server(*, stall_seconds=60.0):
    async with AsyncEngine() as engine:
        app = FastAPI()
        app.include_router(router)
        app.state.service = ModelService(engine, NoObserver())
        app.state.config = ServerConfig(stall_seconds=stall_seconds)
        app.state.drain = Drain()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield app.state, http


async def load(state, name="m", **fake):
    config = ModelConfig(
        model=name,
        backend=FakeBackend(vocab_size=200, **fake),
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_length=256,
        warmup=False,
    )
    await state.service.load(config)


async def told(http, path):
    response = await http.get(path)
    return response.status_code, response.json()


async def test_a_server_is_ready_once_a_model_runs():
    async with server() as (state, http):
        assert await told(http, "/health") == (200, {"status": "ok"})
        assert await told(http, "/ready") == (503, {"status": "not ready", "reason": "no model runs"})
        await load(state)
        assert await told(http, "/ready") == (200, {"status": "ready"})
        await load(state, "second")
        await state.service.unload("m")
        assert await told(http, "/ready") == (200, {"status": "ready"})
        await state.service.unload("second")
        assert (await told(http, "/ready"))[0] == 503


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_outside_the_phase_of_serving_it_is_healthy_and_not_ready(phase):
    async with server() as (state, http):
        await load(state)
        state.drain.phase = phase
        assert (await told(http, "/health"))[0] == 200
        status, body = await told(http, "/ready")
        assert status == 503 and phase.value in body["reason"]


async def test_a_blocked_worker_fails_health_after_the_bound_and_not_before():
    entered, go_on = threading.Event(), threading.Event()

    def block(batch):
        entered.set()
        assert go_on.wait(HANG_SECONDS)

    async with server() as (state, http):
        await load(state, on_batch=block)
        _, queue = await state.service.engine.start_request("m", [1, 2, 3], SamplingParams(max_new_tokens=2))
        await asyncio.to_thread(entered.wait, HANG_SECONDS)
        await asyncio.sleep(0.02)
        # A step may be long: within the bound it is no failure.
        assert (await told(http, "/health"))[0] == 200
        state.config = ServerConfig(stall_seconds=0.01)
        status, body = await told(http, "/health")
        assert status == 503 and body["status"] == "failing" and "'m' has work" in body["reason"]
        assert (await told(http, "/ready"))[0] == 503
        go_on.set()
        await queue.await_finished()
        while (await told(http, "/health"))[0] != 200:
            await asyncio.sleep(0)
        assert (await told(http, "/ready"))[0] == 200


async def test_a_step_loop_that_has_ended_by_itself_fails_health(monkeypatch):
    def fail(self, now):
        raise RuntimeError("path /secret")

    async with server() as (state, http):
        await load(state)
        monkeypatch.setattr(Scheduler, "schedule", fail)
        _, queue = await state.service.engine.start_request("m", [1, 2, 3])
        await queue.await_finished()
        status, body = await told(http, "/health")
        assert status == 503 and "step loop of model 'm' has ended" in body["reason"]
        assert "secret" not in body["reason"]


async def test_the_version_is_the_packages():
    async with server() as (_, http):
        assert await told(http, "/version") == (200, {"version": millstream.__version__})
