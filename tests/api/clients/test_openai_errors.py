"""How OpenAI's Python client sees errors, overload and time-outs, and what its leaving does."""

import asyncio

import pytest
from openai import (
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
)

from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.scheduler import FinishReason

LONG = {"prompt": [1, 2, 3], "max_tokens": 400, "extra_body": {"ignore_eos": True}}


def cancelled(server):
    return server.stats().finished.get(FinishReason.CANCELLED, 0)


async def test_errors_have_their_own_classes(serve, connect, question):
    keys = (ApiKey(name="acme", key="sk-acme"),)
    async with serve(config=ServerConfig(api_keys=keys)) as server:
        async with connect(server) as client:
            with pytest.raises(AuthenticationError) as unknown:
                await client.chat.completions.create(model="pyhelp", messages=question)
            assert unknown.value.code == "invalid_api_key"
        async with connect(server, api_key="sk-acme") as client:
            with pytest.raises(NotFoundError) as missing:
                await client.chat.completions.create(model="gpt-9", messages=question)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            assert "gpt-9" in missing.value.message and "pyhelp" in missing.value.message
            with pytest.raises(BadRequestError) as long:
                await client.completions.create(model="pyhelp", prompt=[5] * 600)
            assert long.value.code == "context_length_exceeded"
            with pytest.raises(InternalServerError) as reserved:
                await client.files.list()
            assert reserved.value.status_code == 501 and reserved.value.code == "not_implemented"
            with pytest.raises(NotFoundError):
                await client.get("/nothing", cast_to=object)
            whole = await client.chat.completions.create(model="pyhelp", messages=question, max_tokens=2)
            assert whole.choices[0].message.content


async def test_a_failed_worker_is_an_internal_error(serve, connect, failing):
    async with serve(failing(tokens=5)) as server, connect(server) as client:
        with pytest.raises(InternalServerError) as failed:
            await client.completions.create(model="failing", **LONG)
        assert failed.value.code == "internal_error" and failed.value.type == "server_error"


async def test_a_failure_in_a_stream_ends_it_with_an_error(serve, connect, failing):
    async with serve(failing(tokens=5)) as server, connect(server) as client:
        stream = await client.completions.create(model="failing", stream=True, **LONG)
        seen = []
        with pytest.raises(APIError) as failed:
            async for chunk in stream:
                seen.append(chunk)
        assert seen and failed.value.code == "internal_error"


async def test_request_ids_come_back(server, connect, question):
    async with connect(server) as client:
        mine = {"X-Request-Id": "mine-1"}
        whole = await client.chat.completions.create(
            model="pyhelp", messages=question, max_tokens=1, extra_headers=mine
        )
        assert whole._request_id == "mine-1"
        given = await client.chat.completions.create(model="pyhelp", messages=question, max_tokens=1)
        assert given._request_id and given._request_id != "mine-1"
        with pytest.raises(BadRequestError) as refused:
            await client.chat.completions.create(model="pyhelp", messages=[], extra_headers=mine)
        assert refused.value.request_id == "mine-1"
        stream = await client.chat.completions.create(
            model="pyhelp", messages=question, max_tokens=1, stream=True, extra_headers=mine
        )
        assert stream.response.headers["x-request-id"] == "mine-1"
        assert [chunk async for chunk in stream]


async def test_an_overload_is_retried_until_there_is_room(serve, connect, slow, until):
    model = slow(max_num_seqs=1, max_queued_requests=1)
    async with serve(model) as server, connect(server, max_retries=20) as client:
        work = {**LONG, "max_tokens": 60, "model": "slow"}
        running = asyncio.create_task(client.completions.create(**work))
        await until(lambda: server.stats().running == 1)
        queued = asyncio.create_task(client.completions.create(**work))
        await until(lambda: server.stats().waiting == 1)
        with pytest.raises(RateLimitError) as full:
            await client.with_options(max_retries=0).completions.create(**work)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        raw = await client.completions.with_raw_response.create(**work)
        assert raw.retries_taken >= 1
        assert raw.parse().choices[0].finish_reason == "length"
        assert [(await task).usage.completion_tokens for task in (running, queued)] == [60, 60]
        await server.all_is_free()


async def test_a_key_s_rate_is_a_rate_limit(serve, connect, slow):
    keys = (ApiKey(name="acme", key="sk-acme", requests_per_minute=1),)
    async with (
        serve(slow(), config=ServerConfig(api_keys=keys)) as server,
        connect(server, api_key="sk-acme") as client,
    ):
        await client.completions.create(model="slow", prompt=[1], max_tokens=1)
        with pytest.raises(RateLimitError) as limited:
            await client.completions.create(model="slow", prompt=[1], max_tokens=1)
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_s_time_out_stops_the_work(serve, connect, slow, until, stream):
    async with (
        serve(slow(step_time=0.05, max_num_seqs=4, max_num_batched_tokens=4)) as server,
        connect(server) as client,
    ):
        # Prefill alone takes 100 steps, five seconds.
        work = {**LONG, "prompt": list(range(100)) * 4, "max_tokens": 50, "stream": stream}
        with pytest.raises(APITimeoutError):
            made = await client.with_options(timeout=1.0).completions.create(model="slow", **work)
            async for _ in made:
                pass
        await until(lambda: cancelled(server) == 1)
        await server.all_is_free()


async def test_a_server_s_deadline_is_told(serve, connect, slow):
    async with serve(slow(max_num_seqs=4, max_num_batched_tokens=4)) as server, connect(server) as client:
        work = {"model": "slow", "prompt": list(range(200)) * 2, "max_tokens": 5}
        with pytest.raises(InternalServerError) as late:
            await client.completions.create(**work, extra_body={"timeout": 0.05})
        assert late.value.status_code == 504 and late.value.code == "timeout"


async def test_a_stream_that_is_closed_early_stops_the_work(serve, connect, in_thread, slow, until):
    async with serve(slow()) as server:
        async with connect(server) as client:
            stream = await client.completions.create(model="slow", stream=True, n=2, **LONG)
            assert (await anext(stream)).choices
            await stream.close()
            await until(lambda: cancelled(server) == 2)
            await server.all_is_free()

        def look(client):
            with client.completions.create(model="slow", stream=True, **LONG) as stream:
                return next(stream).choices[0].index

        assert await in_thread(server, look) == 0
        await until(lambda: cancelled(server) == 3)
        await server.all_is_free()


async def test_many_clients_at_once_each_get_their_own(server, connect, question, answer):
    async with connect(server) as client:

        async def ask(streaming):
            made = await client.chat.completions.create(
                model="pyhelp", messages=question, temperature=0, stream=streaming
            )
            if not streaming:
                return made.choices[0].message.content
            return "".join([chunk.choices[0].delta.content or "" async for chunk in made])

        texts = await asyncio.gather(*(ask(bool(number % 2)) for number in range(12)))
        assert texts == [answer] * 12
        await server.all_is_free()
