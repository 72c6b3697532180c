"""run_server: uvicorn on the configured address, from start-up to an exit that lets requests end."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from socket import (
    AF_INET6,
    AI_PASSIVE,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    getaddrinfo,
    socket,
)
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ...errors import InvalidArgument
from ..cli.running import run_async
from .config import ServerConfig
from .connections import limited_connections
from .draining import CANCEL_SECONDS, Drain, Phase
from .service import ModelService

logger = logging.getLogger(__name__)

EXIT_SECONDS = 15.0
"""From the end of the drain to the end of the process; a worker that hangs is left behind after that."""

_SWITCH_SECONDS = 0.0005
"""For so long a worker's thread may wait for the event loop's, at the beginning and at the end of a step."""

_RESPONSE_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
]

Prepare = Callable[[], Awaitable[None]]


def run_server(app: FastAPI, config: ServerConfig, *, prepare: Prepare | None = None) -> int:
    """Serve until SIGTERM or SIGINT has come and what was in flight has ended; returns the exit status.

    Needs `app.state.service` and `app.state.drain`. The address is taken first; then, while probes get
    their answers already, `prepare` is awaited and may load models. A signal begins the drain: DrainGate
    refuses what is new, and after `config.drain_seconds` what is left is cancelled. A second signal ends the
    process at once. In the end the engine is closed; where `prepare` was cut short by a signal, the process
    ends then and there, with status 0, since a thread that loads a model cannot be ended. Signals reach the
    main thread of a process alone.

    Raises:
        InvalidArgument: the address is not to be had, or the certificate or its key cannot be read.
        What `prepare` raises.
    """
    server = _Server(app, config, prepare)
    listeners = _bind(config)
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        run_async(server.serve_and_close(listeners))
    except SystemExit as end:
        # uvicorn's way to say that the application could not be started; the log says why.
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.setswitchinterval(switch_interval)
        for listener in listeners:
            listener.close()
    return 0


class _Server(uvicorn.Server):
    """A uvicorn server that goes on listening while it drains, so that probes get answers."""

    def __init__(self, app: FastAPI, config: ServerConfig, prepare: Prepare | None) -> None:
        super().__init__(_uvicorn_config(app, config))
        self._drain_seconds = config.drain_seconds
        self._drain: Drain = app.state.drain
        self._service: ModelService = app.state.service
        self._prepare = prepare
        self._preparing: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        # Threads that compute cannot be ended; a daemon thread is there even while they are waited for.
        self._last_resort = threading.Timer(EXIT_SECONDS, _give_up)
        self._last_resort.daemon = True

    async def serve_and_close(self, listeners: list[socket]) -> None:
        """From the start to the end of the engine. Raises what the preparation raises."""
        try:
            await self.serve(listeners)
        finally:
            cut_short = await self._end_preparing()
            self._service.texts.close()
            await self._service.engine.close()
            if cut_short:
                _leave()
            self._last_resort.cancel()
        if self._preparing is not None:
            self._preparing.result()

    async def _end_preparing(self) -> bool:
        """Whether the preparation was cut short; the thread that loads a model then goes on."""
        if self._preparing is None:
            return False
        self._preparing.cancel()
        await asyncio.wait((self._preparing,))
        return self._preparing.cancelled()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Also says where the server listens, and begins to prepare."""
        self._event_loop = asyncio.get_running_loop()
        if self._prepare is not None:
            self._drain.phase = Phase.STARTING
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("listening on %s://%s:%d", scheme, shown, port, extra={"port": port})
        if self._prepare is not None:
            self._preparing = asyncio.create_task(self._become_ready(self._prepare), name="prepare")

    async def _become_ready(self, prepare: Prepare) -> None:
        try:
            await prepare()
        except BaseException:
            self.should_exit = True
            raise
        if self._drain.phase is Phase.STARTING:
            # What is there by now stays: the collector need not walk over it while requests come in.
            gc.collect()
            gc.freeze()
            self._drain.phase = Phase.SERVING
            logger.info("ready")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends the process without further ado."""
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + sig)
        if not self.started or self._event_loop is None:
            self.should_exit = True
            return
        name = signal.Signals(sig).name
        self._event_loop.call_soon_threadsafe(self._begin_end, name)

    def _begin_end(self, name: str) -> None:
        logger.info("%s: shutting down; a second signal ends the process at once", name)
        self._ending = asyncio.create_task(self._end(), name="drain")

    async def _end(self) -> None:
        try:
            await self._end_preparing()
            await self._drain.run(self._service.engine, self._drain_seconds)
        finally:
            self._last_resort.start()
            self.should_exit = True


def _leave() -> None:
    """End the process though a thread still loads a model: no thread can be ended, and its end is far off."""
    logging.shutdown()
    os._exit(0)


def _give_up() -> None:
    logger.critical("a worker does not end; leaving without it")
    os._exit(1)


def _bind(config: ServerConfig) -> list[socket]:
    """Sockets on every address that the host's name stands for; uvicorn lets them listen.

    Raises:
        InvalidArgument: an address is not to be had.
    """
    listeners: list[socket] = []
    port = config.port
    try:
        found = getaddrinfo(config.host, port, type=SOCK_STREAM, flags=AI_PASSIVE)
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            listener = socket(family, SOCK_STREAM)
            listeners.append(listener)
            if os.name == "posix":
                listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            if family == AF_INET6:
                listener.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
            # Port 0 is chosen once, for all addresses.
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        allowed = f"an address of this machine with a free port ({error.strerror or error})"
        raise InvalidArgument("host and port", f"{config.host}:{config.port}", allowed) from error
    return listeners


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    """Raises InvalidArgument when the certificate or its key cannot be read."""
    made = uvicorn.Config(
        app,
        # uvicorn only calls it; its annotation asks for a class.
        http=limited_connections(config),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        headers=_RESPONSE_HEADERS,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        # What is in flight has ended or was cancelled by then.
        timeout_graceful_shutdown=round(CANCEL_SECONDS),
    )
    try:
        made.load()
    except OSError as error:
        files = f"{config.tls_certificate}, {config.tls_key}"
        raise InvalidArgument("tls_certificate, tls_key", files, f"PEM files that fit ({error})") from error
    return made
