"""Half-sent requests end, and so do crowds of connections; over raw sockets."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
import uvicorn

from millstream.api.server.config import ServerConfig
from millstream.api.server.connections import limited_connections
from millstream.errors import InvalidArgument

HEAD = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT, LONG = 0.15, 60.0


class Application:
    """Echoes a body; /stream answers until it is told to end, and /idle never reads its body."""

    def __init__(self):
        self.ended = asyncio.Event()
        self.messages = []

    async def __call__(self, scope, receive, send):
        body, more = b"", scope["path"] != "/idle"
        while more:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/x":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await self.ended.wait()
        await send({"type": "http.response.body", "body": body + b"!"})


@asynccontextmanager
async def serving(**limits):
    config = ServerConfig(**{"head_seconds": LONG, "body_seconds": LONG, **limits})
    application = Application()
    server = uvicorn.Server(
        uvicorn.Config(
            application, port=0, log_config=None, lifespan="off", ws="none", http=limited_connections(config)
        )
    )
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.002)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], application
    finally:
        application.ended.set()
        server.should_exit = True
        await task


async def connect(port):
    return await asyncio.open_connection("127.0.0.1", port)


async def until_closed(reader):
    async with asyncio.timeout(30):
        return await reader.read()


def refusal(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"POST /x HT", HEAD[:-2]], ids=["nothing", "a line", "a word", "a head"]
)
async def test_a_head_that_does_not_come_ends_the_connection(sent):
    async with serving(head_seconds=SHORT) as (port, _):
        reader, writer = await connect(port)
        writer.write(sent)
        assert refusal(await until_closed(reader)) == (408, "request_timeout")
        writer.close()


async def test_a_head_that_drips_ends_the_connection():
    async with serving(head_seconds=SHORT) as (port, _):
        reader, writer = await connect(port)
        closed = asyncio.create_task(until_closed(reader))
        writer.write(GET[:-2])
        while not closed.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(SHORT / 10)
        assert refusal(closed.result()) == (408, "request_timeout")
        writer.close()


@pytest.mark.parametrize("sent", [b"\r\n", GET[:20]], ids=["a line", "a word"])
async def test_the_next_head_has_a_limit_too(sent):
    async with serving(head_seconds=SHORT) as (port, _):
        reader, writer = await connect(port)
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n0\r\n\r\n")).endswith(b"!\r\n0\r\n\r\n")
        writer.write(sent)
        assert refusal(await until_closed(reader)) == (408, "request_timeout")
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"12345"], ids=["nothing", "half"])
async def test_a_body_without_progress_ends_the_connection(sent):
    async with serving(body_seconds=SHORT) as (port, application):
        reader, writer = await connect(port)
        writer.write(HEAD + sent)
        assert refusal(await until_closed(reader)) == (408, "request_timeout")
        async with asyncio.timeout(30):
            while application.messages[-1:] != ["http.disconnect"]:
                await asyncio.sleep(0.002)
        writer.close()


async def test_a_body_that_comes_slowly_is_read():
    async with serving(body_seconds=1.0) as (port, _):
        reader, writer = await connect(port)
        writer.write(HEAD)
        for digit in b"0123456789":
            writer.write(bytes([digit]))
            await asyncio.sleep(0.15)
        assert b"0123456789!" in await reader.readuntil(b"!")
        writer.close()


async def test_an_answer_on_its_way_is_not_cut_off():
    async with serving(head_seconds=SHORT, body_seconds=SHORT) as (port, application):
        reader, writer = await connect(port)
        writer.write(GET.replace(b"/x", b"/stream") + GET[:20])
        await reader.readuntil(b"begun")
        await asyncio.sleep(4 * SHORT)
        application.ended.set()
        assert b"!" in await reader.readuntil(b"!")
        writer.close()


async def test_a_body_that_the_application_has_not_taken_is_waited_for():
    async with serving(body_seconds=SHORT) as (port, application):
        reader, writer = await connect(port)
        writer.write(
            b"POST /idle HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000)
        )
        await reader.readuntil(b"begun")
        await asyncio.sleep(4 * SHORT)
        application.ended.set()
        assert b"!" in await reader.readuntil(b"!")
        writer.close()


@pytest.mark.parametrize(
    ("limits", "status"),
    [({"max_connections": 2}, 503), ({"max_connections_per_address": 2}, 429)],
    ids=["in all", "of an address"],
)
async def test_connections_are_bounded_and_a_place_becomes_free_again(limits, status):
    async with serving(**limits) as (port, _):
        kept = [await connect(port) for _ in range(2)]
        for _ in range(3):
            reader, writer = await connect(port)
            assert refusal(await until_closed(reader)) == (status, "too_many_connections")
            writer.close()
        kept[0][1].close()
        await kept[0][1].wait_closed()
        answer = b""
        async with asyncio.timeout(30):
            while b"200 OK" not in answer:
                reader, writer = await connect(port)
                writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                try:
                    answer = await reader.read()
                except ConnectionResetError:
                    answer = b""
                writer.close()
        kept[1][1].close()


@pytest.mark.parametrize(
    "field", ["head_seconds", "body_seconds", "max_connections", "max_connections_per_address"]
)
def test_limits_are_above_zero(field):
    with pytest.raises(InvalidArgument, match=field):
        ServerConfig(**{field: 0})
