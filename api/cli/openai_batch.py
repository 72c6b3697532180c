"""OpenAI's batch files: lines that are requests of HTTP, answered by the server's own application.

| line | fields |
|---|---|
| request | custom_id, method ("POST"), url (one of URLS), body (as it would be sent to that route) |
| answer | id, custom_id, response (status_code, request_id, body), error (None) |
| not sent | id, custom_id, response (None), error (code, message): the line itself is wrong |

A refused request is an answer, too: its status_code is not 200, and its body holds the error.
"""

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import FastAPI

from ...engine import AsyncEngine, ModelConfig

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
FIELDS = ("custom_id", "method", "url", "body")


class BatchError(msgspec.Struct, frozen=True):
    """Why a line was not sent."""

    code: str
    message: str


class BatchResponse(msgspec.Struct, frozen=True):
    """What the application answered."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of output."""

    id: str
    custom_id: str | None
    response: BatchResponse | None = None
    error: BatchError | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no answer to what was asked."""
        return self.response is None or self.response.status_code != 200

    @property
    def output_tokens(self) -> int:
        """As the answer's usage has it."""
        usage = {} if self.response is None else self.response.body.get("usage") or {}
        return int(usage.get("completion_tokens") or 0)


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One line of input. `error` says why it cannot be sent; then nothing else in it counts."""

    index: int
    custom_id: str | None = None
    url: str = ""
    body: dict[str, Any] = {}
    error: str | None = None

    @property
    def key(self) -> int | str:
        """What a later run knows the line by."""
        return self.index if self.custom_id is None else self.custom_id


def is_batch_request(fields: Mapping[str, Any]) -> bool:
    """Whether a line is one of OpenAI's format."""
    return "body" in fields or "url" in fields


def read_batch_request(fields: Mapping[str, Any], index: int) -> BatchRequest:
    """The request in a line; with an error where it is none that can be sent."""
    custom_id = fields.get("custom_id")
    given = custom_id if isinstance(custom_id, str) else None
    unknown = [name for name in fields if name not in FIELDS]
    body = fields.get("body")
    checks = (
        (given is not None, f"custom_id is {custom_id!r}; allowed: a string"),
        (fields.get("method") == "POST", f"method is {fields.get('method')!r}; allowed: 'POST'"),
        (fields.get("url") in URLS, f"url is {fields.get('url')!r}; allowed: {', '.join(URLS)}"),
        (isinstance(body, dict), f"body is {body!r}; allowed: an object"),
        (not unknown, f"{', '.join(unknown)} is no field of a batch's line; allowed: {', '.join(FIELDS)}"),
        (not (isinstance(body, dict) and body.get("stream")), "stream is true; allowed: false in a batch"),
    )
    error = next((message for holds, message in checks if not holds), None)
    if error is not None:
        return BatchRequest(index=index, custom_id=given, error=error)
    return BatchRequest(index=index, custom_id=given, url=fields["url"], body=fields["body"])


class BatchCaller:
    """Sends lines of a batch to the server's application over one running model, without a network."""

    def __init__(self, engine: AsyncEngine, config: ModelConfig) -> None:
        from ..server.app import create_app
        from ..server.config import ServerConfig
        from ..server.metrics import ServerMetrics
        from ..server.service import ModelService

        server = ServerConfig()
        metrics = ServerMetrics(engine, server)
        service = ModelService(engine, metrics)
        service.adopt(config)
        self._app = create_app(service, server, metrics)

    async def answer(self, row: BatchRequest) -> BatchResult:
        """The line's result."""
        name = f"batch_req_{uuid4().hex}"
        if row.error is not None:
            error = BatchError("invalid_line", row.error)
            return BatchResult(id=name, custom_id=row.custom_id, error=error)
        response = await _post(self._app, row.url, msgspec.json.encode(row.body))
        return BatchResult(id=name, custom_id=row.custom_id, response=response)


async def _post(app: FastAPI, path: str, body: bytes) -> BatchResponse:
    """One request, as a server would hand it to the application."""
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": {},
    }
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])
    status, sent, told = 500, bytearray(), dict[bytes, bytes]()

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        await asyncio.Event().wait()  # nobody hangs up
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            told.update(message["headers"])
        else:
            sent.extend(message.get("body", b""))

    await app(scope, receive, send)
    return BatchResponse(status, told.get(b"x-request-id", b"").decode(), msgspec.json.decode(bytes(sent)))
