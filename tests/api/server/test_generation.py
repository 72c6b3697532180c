"""Clients that leave, deadlines and queues: what happens to the work behind a request."""

import asyncio
import json

import httpx
import pytest

from millstream.api.server.config import ServerConfig
from millstream.backends.fake import FakeBackend
from millstream.scheduler import FinishReason

from ...sse import whole_events
from ...waiting import HANG_SECONDS, until

LONG = 400


def slow(fake, step_time=0.01, **config):
    return fake(backend=FakeBackend(vocab_size=200, max_length=512, step_time=step_time), **config)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_a_client_that_leaves_stops_its_work(serve, fake, stream, n, phase):
    config = {"max_num_seqs": 4, "max_num_batched_tokens": 4}
    async with serve(slow(fake, **config)) as server:
        blocker = None
        if phase == "queued":
            blocker = asyncio.create_task(
                server.post("/v1/completions", prompt=[1], max_tokens=300, n=4, ignore_eos=True)
            )
            await until(lambda: server.stats().running == 4)
        before = server.stats().finished.get(FinishReason.CANCELLED, 0)
        prompt = list(range(200)) if phase == "prefill" else [5, 6, 7]
        body = {"prompt": prompt, "max_tokens": 300, "n": n, "stream": stream, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=server.url) as client:
            asked = asyncio.create_task(client.post("/v1/completions", json=body))
            if phase == "queued":
                await until(lambda: server.stats().waiting == n)
            elif phase == "prefill":
                await until(lambda: server.stats().prompt_tokens > 0)
            else:
                await until(lambda: server.stats().generated_tokens > 3)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        await until(lambda: server.stats().finished.get(FinishReason.CANCELLED, 0) == before + n)
        if blocker is not None:
            whole = (await blocker).json()
            assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * 4
        await server.all_is_free()


async def test_a_deadline_before_the_first_token_is_504(serve, fake):
    async with serve(slow(fake, max_num_seqs=1)) as server:
        blocker = asyncio.create_task(
            server.post("/v1/completions", prompt=[1], max_tokens=300, ignore_eos=True)
        )
        await until(lambda: server.stats().running == 1)
        late = await server.post("/v1/completions", prompt=[2], max_tokens=5, timeout=0.05)
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        headers = {"X-Request-Timeout": "0.05"}
        late = await server.post("/v1/completions", headers, prompt=[2], max_tokens=5)
        assert late.status_code == 504
        queued = await server.post("/v1/completions", prompt=[2], max_tokens=5, queue_timeout=0.05)
        assert queued.status_code == 504 and queued.json()["error"]["code"] == "queue_timeout"
        bad = await server.post("/v1/completions", {"X-Request-Timeout": "soon"}, prompt=[2])
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "X-Request-Timeout"
        blocker.cancel()


async def test_a_deadline_in_the_middle_is_told_as_one(serve, fake):
    async with serve(slow(fake), config=ServerConfig(request_timeout=HANG_SECONDS)) as server:
        fields = {"prompt": [1], "max_tokens": LONG, "timeout": 1.0, "ignore_eos": True}
        cut = (await server.post("/v1/completions", **fields)).json()
        [choice] = cut["choices"]
        assert choice["finish_reason"] == "timeout" and 0 < len(choice["text"]) < LONG
        *chunks, done = await server.events("/v1/completions", **fields)
        assert done == "[DONE]"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "timeout"


async def test_a_failing_step_is_an_error_in_both_forms(serve, fake):
    def fail(batch):
        if any(piece.tokens[0] == 13 for piece in batch.chunks):
            raise RuntimeError("the device is gone")

    backend = FakeBackend(vocab_size=200, max_length=512, on_batch=fail)
    async with serve(fake(backend=backend, warmup=False)) as server:
        whole = await server.post("/v1/completions", prompt=[13, 13])
        assert whole.status_code == 500
        assert "the device is gone" in whole.json()["error"]["message"]
        error, done = await server.events("/v1/completions", prompt=[13, 13])
        assert json.loads(error)["error"]["code"] == "internal_error" and done == "[DONE]"
        assert (await server.post("/v1/completions", prompt=[1], max_tokens=2)).status_code == 200


async def test_a_silent_stream_is_kept_alive(serve, fake):
    config = ServerConfig(keep_alive_seconds=0.02)
    async with serve(slow(fake, step_time=0.3), config=config) as server:
        body = {"prompt": [1], "max_tokens": 1, "stream": True}
        async with server.client.stream("POST", "/v1/completions", json=body) as response:
            content = await response.aread()
        assert content.count(b"\n: keep-alive\n\n") > 2
        assert whole_events(content)[-1] == "[DONE]"


async def test_priorities_decide_who_is_next(serve, fake):
    from millstream.engine import Policy

    async with serve(slow(fake, max_num_seqs=1, policy=Policy.PRIORITY)) as server:
        blocker = asyncio.create_task(
            server.post("/v1/completions", prompt=[1], max_tokens=30, ignore_eos=True)
        )
        await until(lambda: server.stats().running == 1)
        order = []

        async def ask(priority):
            await server.post("/v1/completions", prompt=[2], max_tokens=3, priority=priority)
            order.append(priority)

        tasks = []
        for priority in (5, 1, -3):
            tasks.append(asyncio.create_task(ask(priority)))
            await until(lambda: server.stats().waiting == len(tasks))
        await asyncio.gather(blocker, *tasks)
        assert order == [-3, 1, 5]


async def test_hangups_at_random_moments_leave_nothing_behind(serve, fake):
    import random

    draw = random.Random(1)
    async with serve(slow(fake, step_time=0.001, max_num_seqs=16)) as server:

        async def one(stream, n, leave):
            body = {"prompt": [draw.randrange(200)] * 20, "max_tokens": 40, "n": n, "stream": stream}
            async with httpx.AsyncClient(base_url=server.url, timeout=HANG_SECONDS) as client:
                asked = asyncio.create_task(client.post("/v1/completions", json=body))
                if leave is not None:
                    await asyncio.sleep(leave)
                    asked.cancel()
                    return None
                return (await asked).status_code

        jobs = [
            one(draw.random() < 0.5, draw.choice([1, 1, 3]), draw.random() * 0.1 if i % 3 == 0 else None)
            for i in range(60)
        ]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [r for r in results if r not in (None, 200)] == []
        await server.all_is_free()
