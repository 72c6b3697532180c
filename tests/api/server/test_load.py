"""Hundreds of clients at once, many of which hang up: nothing fails, nothing is lost, nothing stays behind.

MILLSTREAM_LOAD_REQUESTS sets the number of requests; with 20000 it takes several minutes.
"""

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from ...sse import whole_events
from ...waiting import HANG_SECONDS
from ..server_process import ServerProcess

PROGRAM = Path(__file__).with_name("load_program.py")
REQUESTS = int(os.environ.get("MILLSTREAM_LOAD_REQUESTS", "2000"))
CLIENTS = 500
ROUND = 1000
HANG_UPS = 0.3
GROWTH_KIB = 5 * 1024
SETTLED_AFTER = 2000
"""Requests after which caches, buffers and the prefix cache have their size."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX'")


@pytest.fixture
def server():
    options = {"step_seconds": 0.002, "max_num_seqs": 96, "max_length": 256, "max_queued_requests": 128}
    process = ServerProcess(str(PROGRAM), json.dumps(options), keep_lines=False)
    process.wait_until_ready()
    yield process
    process.close()


class Clients:
    """Sends requests of all kinds and counts what became of them."""

    def __init__(self, session, rng):
        self._session = session
        self._rng = rng
        self.ends = Counter()
        self.faults = []

    async def send(self, count):
        """`count` requests, by up to CLIENTS clients at the same time."""
        left = iter(range(count))

        async def client():
            for _ in left:
                await self._one(*self._draw())

        await asyncio.gather(*(client() for _ in range(min(CLIENTS, count))))

    def _draw(self):
        rng = self._rng
        body = {
            "n": rng.choice((1, 1, 1, 2, 3)),
            "max_tokens": rng.randint(4, 40),
            "stream": rng.random() < 0.7,
            "ignore_eos": True,
            "user": f"client {rng.randrange(100)}",
        }
        words = " ".join(rng.choices(("list", "dict", "open", "path", "join", "sort"), k=rng.randint(1, 30)))
        if rng.random() < 0.5:
            path, body["prompt"] = "/v1/completions", words
        else:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": words}]
        patience = rng.uniform(0, 0.4) if rng.random() < HANG_UPS else None
        return path, body, patience

    async def _one(self, path, body, patience):
        try:
            async with asyncio.timeout(patience):
                end = await self._ask(path, body)
        except TimeoutError:
            end = "hung up"
        except (aiohttp.ClientError, OSError) as error:
            end = "fault"
            self.faults.append(repr(error))
        self.ends[end] += 1

    async def _ask(self, path, body):
        async with self._session.post(path, json=body) as response:
            content = await response.read()
        if response.status == 429:
            if (
                json.loads(content)["error"]["code"] == "queue_full"
                and int(response.headers["Retry-After"]) > 0
            ):
                return "refused"
        elif response.status == 200 and self._is_whole(body, content):
            return "answered"
        self.faults.append(f"{response.status} {content[:500]!r}")
        return "fault"

    @staticmethod
    def _is_whole(body, content):
        if not body["stream"]:
            answer = json.loads(content)
            reasons = [choice["finish_reason"] for choice in answer["choices"]]
            tokens = answer["usage"]["completion_tokens"]
            return reasons == ["length"] * body["n"] and tokens == body["n"] * body["max_tokens"]
        *events, done = whole_events(content)
        choices = [c for event in events for c in json.loads(event)["choices"]]
        ended = sorted(c["index"] for c in choices if c["finish_reason"] == "length")
        return done == "[DONE]" and ended == list(range(body["n"]))


async def audit(session):
    async with session.get("/audit") as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def at_rest(session, tasks=None, descriptors=None):
    """What the server holds, once nothing runs any more and no more is open than is said."""
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            found = await audit(session)
            busy = [found[name] for name in ("running", "waiting", "held_blocks", "in_flight", "reports")]
            more = (tasks is not None and found["tasks"] > tasks) or (
                descriptors is not None and found["descriptors"] > descriptors
            )
            if not any(busy) and not more:
                return found
            await asyncio.sleep(0.02)


def session_with(url):
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=HANG_SECONDS))


async def test_hundreds_of_clients_leave_nothing_behind(server):
    rng = random.Random(20)
    async with session_with(server.url) as own:
        async with own.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}) as first:
            assert first.status == 200
        before = await at_rest(own)
        ends, memory = Counter(), []
        for start in range(0, REQUESTS, ROUND):
            async with session_with(server.url) as session:
                clients = Clients(session, rng)
                await clients.send(min(ROUND, REQUESTS - start))
            assert clients.faults == []
            ends += clients.ends
            after = await at_rest(own, before["tasks"], before["descriptors"])
            memory.append((start + ROUND, after["anonymous_kib"]))
        print(dict(ends), memory, before, after)
        assert ends.total() == REQUESTS
        assert min(ends["answered"], ends["refused"], ends["hung up"]) > REQUESTS / 20
        async with own.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}) as last:
            assert last.status == 200
    settled = [kib for requests, kib in memory if requests >= SETTLED_AFTER and kib is not None]
    if settled:
        assert settled[-1] - settled[0] < GROWTH_KIB, memory
    server.signal()
    assert server.end() == 0
