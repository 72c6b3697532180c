"""A server without a model: `python -m millstream.benchmarks.serve.stub --step-ms 10`.

It answers completions and chat completions with as many tokens as are asked for, an event for each, all
streams in the same step, as an engine with continuous batching does. What the load generator takes from it
is the most that it can measure.
"""

import asyncio
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import cast

import msgspec

from ...api.cli.running import run_async
from ...api.cli.terminal import CommandParser, command_status
from ...errors import InvalidArgument

_DEFAULT_TOKENS = 16
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_ABOUT = b'"id":"cmpl-0123456789abcdef0123456789abcdef","created":1700000000,"model":"stub"'
_TEXT = (
    b'"object":"text_completion","choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":%b}]'
)
_CHAT = (
    b'"object":"chat.completion.chunk",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":%b}]'
)
_USAGE = b'{%b,"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'


class _Asked(msgspec.Struct):
    prompt: str | list[int] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


class _Stream:
    """One answer that is being given."""

    __slots__ = ("end", "left", "token", "transport")

    def __init__(self, transport: asyncio.Transport, asked: _Asked) -> None:
        shape = _CHAT if asked.prompt is None else _TEXT
        tokens = asked.max_completion_tokens or asked.max_tokens or _DEFAULT_TOKENS
        prompt_tokens = len(asked.prompt or "")
        usage = _USAGE % (_ABOUT, prompt_tokens, tokens, prompt_tokens + tokens)
        last = b"{%b,%b}" % (_ABOUT, shape % b'"length"')
        self.transport = transport
        self.left = tokens
        self.token = _event(b"{%b,%b}" % (_ABOUT, shape % b"null"))
        self.end = _event(last) + _event(usage) + _event(b"[DONE]") + b"0\r\n\r\n"


class Pacer:
    """Gives every stream a token in each step, and keeps the steps' pace where the machine can."""

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._streams: dict[asyncio.Transport, _Stream] = {}
        self._due: float | None = None

    def add(self, stream: _Stream) -> None:
        """Its first token comes with the next step."""
        self._streams[stream.transport] = stream
        if self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + self._step_seconds
            loop.call_at(self._due, self._step)

    def drop(self, transport: asyncio.Transport) -> None:
        """Its client has hung up."""
        self._streams.pop(transport, None)

    def _step(self) -> None:
        for stream in list(self._streams.values()):
            stream.left -= 1
            if stream.left:
                stream.transport.write(stream.token)
            else:
                stream.transport.write(stream.end)
                del self._streams[stream.transport]
        loop = asyncio.get_running_loop()
        self._due = max((self._due or 0.0) + self._step_seconds, loop.time()) if self._streams else None
        if self._due is not None:
            loop.call_at(self._due, self._step)


class Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as a load generator uses: one request after the other, bodies of known length."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """It has gone, perhaps in the middle of an answer."""
        self._pacer.drop(self._transport)

    def data_received(self, data: bytes) -> None:
        """Answers as soon as the request is whole."""
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        length = _content_length(head)
        if not found or len(rest) < length:
            return
        body, self._received = rest[:length], rest[length:]
        method, path, *_ = head.split(b" ", 2)
        if method == b"GET" and path == b"/v1/models":
            self._answer(b"200 OK", b'{"object":"list","data":[{"id":"stub","object":"model"}]}')
        elif method == b"POST" and path in (b"/v1/completions", b"/v1/chat/completions"):
            try:
                stream = _Stream(self._transport, msgspec.json.decode(body, type=_Asked))
            except msgspec.DecodeError as error:
                message = msgspec.json.encode({"error": {"message": str(error)}})
                self._answer(b"400 Bad Request", message)
                return
            self._transport.write(_HEAD)
            self._pacer.add(stream)
        else:
            self._answer(b"404 Not Found", b'{"error":{"message":"there is no such route"}}')

    def _answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)


def _event(data: bytes) -> bytes:
    """One event as one chunk of the body."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def serve_stub(port: int, step_seconds: float) -> asyncio.Server:
    """A stub that listens on 127.0.0.1, on a free port with `port` 0."""
    pacer = Pacer(step_seconds)
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(pacer), "127.0.0.1", port, backlog=4096)


def _parser() -> ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.serve.stub",
        description="Answer OpenAI's completions without a model, a token for every stream in each step.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--step-ms", type=float, default=10.0, help="time between two steps")
    return parser


async def _serve(port: int, step_seconds: float) -> None:
    server = await serve_stub(port, step_seconds)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


def main(argv: Sequence[str]) -> int:
    """Run the server until it is interrupted."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if not options.step_ms > 0:
        raise InvalidArgument("--step-ms", options.step_ms, "milliseconds above 0")
    if not 0 <= options.port < 65536:
        raise InvalidArgument("--port", options.port, "0 to 65535")
    run_async(_serve(options.port, options.step_ms / 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
