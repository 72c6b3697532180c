"""Connection: HTTP of one client within limits, so that half-sent requests and crowds of connections end."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .config import ServerConfig
from .errors import INVALID, OVERLOADED, ApiError


class ConnectionCounts:
    """How many connections there are, in all and by address."""

    def __init__(self, most: int, most_of_address: int) -> None:
        """Each bound is 1 or more."""
        self._most = most
        self._most_of_address = most_of_address
        self._by_address: Counter[str] = Counter()
        self.total = 0

    def enter(self, address: str) -> ApiError | None:
        """Count one more, or say why there may be none."""
        if self.total >= self._most:
            return _crowded(503, f"the server has {self.total} connections, which is its limit")
        if self._by_address[address] >= self._most_of_address:
            message = (
                f"there are {self._by_address[address]} connections from this address, which is the limit"
            )
            return _crowded(429, message)
        self.total += 1
        self._by_address[address] += 1
        return None

    def leave(self, address: str) -> None:
        """One that was counted has ended."""
        self.total -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with an end to waiting.

    A request's head must be there `head_seconds` after its first byte, a connection's first one after the
    connection was made. While a body is read, `body_seconds` may pass without any of it. Whoever takes longer
    is answered with 408, if nothing was answered yet, and the connection is closed. A response that is on its
    way is never cut off for what its client sends behind the request.
    """

    def __init__(
        self, counts: ConnectionCounts, head_seconds: float, body_seconds: float, **uvicorn: Any
    ) -> None:
        super().__init__(**uvicorn)
        self._counts = counts
        self._head_seconds = head_seconds
        self._body_seconds = body_seconds
        self._address: str | None = None
        """None where it is not counted."""
        self._timer: asyncio.TimerHandle | None = None
        self._progress = 0.0
        """When the last part of the body came."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it; where there are too many, answer so and close."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        refusal = self._counts.enter(address)
        if refusal is not None:
            self._close_with(refusal)
            return
        self._address = address
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        if self._address is not None:
            self._counts.leave(self._address)
            self._address = None
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Also the beginning of a head, be it an empty line."""
        if self._address is None:
            return
        if self._timer is None:
            self._await_head()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The body's time begins."""
        super().on_headers_complete()
        self._progress = self.loop.time()
        self._start_timer(self._body_seconds, self._check_body)

    def on_body(self, body: bytes) -> None:
        """A body goes on."""
        self._progress = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing more is waited for, until the next head begins."""
        self._stop_timer()
        super().on_message_complete()

    def _await_head(self) -> None:
        self._start_timer(self._head_seconds, self._check_head)

    def _check_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()
        else:
            self._time_out(f"the request's head was not complete after {self._head_seconds:g} seconds")

    def _check_body(self) -> None:
        waited = self.loop.time() - self._progress
        if self.flow.read_paused:
            # It is the server that has not taken what there is.
            waited = 0.0
        if waited < self._body_seconds:
            self._start_timer(self._body_seconds - waited, self._check_body)
        else:
            self._time_out(f"nothing of the request's body has come for {self._body_seconds:g} seconds")

    def _time_out(self, message: str) -> None:
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()
            return
        self._close_with(ApiError(408, message, kind=INVALID, code="request_timeout"))

    def _close_with(self, error: ApiError) -> None:
        """Answer past the application, which sees that its client has gone."""
        body = error.body()
        lines = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in error.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _start_timer(self, seconds: float, check: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, check)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_connections(config: ServerConfig) -> Callable[..., Connection]:
    """Makes the connections of one server, which are counted together."""
    counts = ConnectionCounts(config.max_connections, config.max_connections_per_address)
    return partial(Connection, counts, config.head_seconds, config.body_seconds)


def _crowded(status: int, message: str) -> ApiError:
    return ApiError(
        status, message, kind=OVERLOADED, code="too_many_connections", headers={"Retry-After": "1"}
    )
