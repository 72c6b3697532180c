"""A server over the fake worker, for tests that send signals; its argument is a JSON object of options."""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from fastapi import FastAPI, Request

from millstream.api.server.config import ServerConfig
from millstream.api.server.draining import Drain
from millstream.api.server.generation import Generation
from millstream.api.server.keys import ApiKey, KeyRing
from millstream.api.server.logs import configure_logging
from millstream.api.server.middleware.access_log import AccessLog
from millstream.api.server.middleware.authentication import Authentication
from millstream.api.server.middleware.body_limit import BodyLimit
from millstream.api.server.middleware.drain_gate import DrainGate
from millstream.api.server.middleware.internal_errors import InternalErrors
from millstream.api.server.middleware.key_limits import KeyLimits
from millstream.api.server.middleware.request_ids import RequestIds
from millstream.api.server.routes.health import router
from millstream.api.server.service import ModelService
from millstream.api.server.serving import run_server
from millstream.api.server.sse import DONE, EventStream, event
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions
from millstream.errors import MillstreamError
from millstream.scheduler import SamplingParams


class NoObserver:
    """Nobody is told."""

    def request_finished(self, model, tenant, queue, *, sample=0):
        pass

    def remember(self, model):
        pass


def make_app(service, config):
    app = FastAPI()
    app.state.service, app.state.config, app.state.drain = service, config, Drain()
    app.include_router(router)

    @app.post("/v1/completions")
    async def complete(request: Request):
        """The body is {"tokens": N}: so many are streamed."""
        tokens = (await request.json())["tokens"]
        params = SamplingParams(temperature=0, max_new_tokens=tokens, ignore_eos=True)
        generation = await Generation.start(
            service, service.target(None), [[1, 2, 3]], params, RequestOptions()
        )
        request.scope["state"]["generation"] = generation

        async def events():
            async for _, output in generation.events():
                reason = output.finish_reason
                yield event({"tokens": len(output.token_ids), "end": reason and reason.name})
            yield DONE

        return EventStream(generation, events(), keep_alive=10.0)

    @app.get("/running")
    async def running() -> int:
        return service.engine.stats("m").running

    @app.post("/block")
    async def block() -> None:
        await asyncio.Event().wait()

    app.add_middleware(KeyLimits, api_keys=config.api_keys)
    app.add_middleware(Authentication, keys=KeyRing(config.api_keys))
    app.add_middleware(InternalErrors)
    app.add_middleware(BodyLimit, max_body_bytes=config.max_body_bytes)
    app.add_middleware(DrainGate, drain=app.state.drain)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestIds)
    return app


class EndlessBackend(FakeBackend):
    """Loads for ever, in a thread that nobody can end."""

    def load(self, info, config, progress):
        print("loading for ever", file=sys.stderr, flush=True)
        threading.Event().wait()


def main(options):
    step_time = options.pop("step_time", 0.002)
    load_gate = options.pop("load_gate", None)
    load_fails = options.pop("load_fails", False)
    hangs = options.pop("hangs", False)
    kind = EndlessBackend if options.pop("load_is_endless", False) else FakeBackend
    keys = tuple(ApiKey(**fields) for fields in options.pop("keys", ()))
    for name in ("tls_certificate", "tls_key"):
        if name in options:
            options[name] = Path(options[name])
    config = ServerConfig(port=options.pop("port", 0), api_keys=keys, **options)
    configure_logging("debug", json=True)
    service = ModelService(AsyncEngine(), NoObserver())

    def hang(batch):
        threading.Event().wait()

    async def load():
        while load_gate is not None and not os.path.exists(load_gate):  # noqa: ASYNC240
            await asyncio.sleep(0.005)
        await service.load(
            ModelConfig(
                model="m",
                backend=kind(vocab_size=200, step_time=step_time, on_batch=hang if hangs else None),
                max_num_seqs=8,
                max_num_batched_tokens=64,
                max_length=100_000 if load_fails else 4096,
                warmup=False,
            )
        )

    try:
        return run_server(make_app(service, config), config, prepare=load)
    except MillstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
