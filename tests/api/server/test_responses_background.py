import asyncio

import httpx
import pytest

from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.scheduler import FinishReason

from ...waiting import HANG_SECONDS, until
from .responses import ASK, PATH, THOUGHT, client_of, create, read, scripted, streamed


async def ended(server, response_id):
    async with asyncio.timeout(HANG_SECONDS):
        while True:
            response = read((await server.client.get(f"{PATH}/{response_id}")).text)
            if response.status not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.005)


async def test_a_background_response_is_there_at_its_end(serve, fake):
    async with serve(scripted(fake, step_time=0.05, max_num_seqs=1)) as server:
        before = asyncio.create_task(
            server.post("/v1/completions", prompt=[1], max_tokens=400, ignore_eos=True)
        )
        await until(lambda: server.stats().running == 1)
        begun = await create(server, background=True)
        assert begun.status in ("queued", "in_progress") and begun.background and begun.output == []
        items = await server.client.get(f"{PATH}/{begun.id}/input_items")
        assert items.json()["data"][0]["content"][0]["text"] == ASK["input"]
        error = await create(server, 400, previous_response_id=begun.id)
        assert error["param"] == "previous_response_id" and "in_progress" in error["message"]
        before.cancel()
        whole = await ended(server, begun.id)
        assert whole.status == "completed" and whole.output_text == "It is four" and whole.background
        assert (await create(server, previous_response_id=begun.id)).status == "completed"
        again = read((await server.client.post(f"{PATH}/{begun.id}/cancel")).text)
        assert again == whole
        await server.all_is_free()


async def test_a_background_response_can_be_cancelled(serve, fake):
    async with serve(scripted(fake, ["word "] * 400, step_time=0.005)) as server:
        begun = await create(server, background=True, max_output_tokens=400)
        await until(lambda: server.stats().generated_tokens > 3)
        async with client_of(server) as client:
            cancelled = await client.responses.cancel(begun.id)
            assert cancelled.status == "cancelled" and cancelled.output_text.startswith("word word ")
            assert 0 < cancelled.usage.output_tokens < 400
            assert (await client.responses.cancel(begun.id)).status == "cancelled"
        assert (await ended(server, begun.id)).status == "cancelled"
        await until(lambda: server.stats().finished.get(FinishReason.CANCELLED, 0) == 1)
        error = await create(server, 400, previous_response_id=begun.id)
        assert "cancelled" in error["message"]
        at_once = await create(server, background=True, max_output_tokens=400)
        await server.client.delete(f"{PATH}/{at_once.id}")
        assert (await server.client.get(f"{PATH}/{at_once.id}")).status_code == 404
        await server.all_is_free()


async def test_a_background_response_that_fails_says_so(serve, fake):
    async with serve(scripted(fake, ["word "] * 400, step_time=0.005, max_num_seqs=1)) as server:
        first = await create(server, background=True, max_output_tokens=400, timeout=1.0)
        waiting = await create(server, background=True, max_output_tokens=400, queue_timeout=0.05)
        assert waiting.status == "queued"
        late = await ended(server, waiting.id)
        assert late.status == "failed" and "queue" in late.error.message
        cut = await ended(server, first.id)
        assert cut.status == "failed" and "time was up" in cut.error.message
        assert cut.output_text.startswith("word ")


async def test_a_keys_limit_holds_in_the_background(serve, fake):
    keys = (ApiKey(name="a", key="key-a", max_running_requests=1),)
    config = ServerConfig(api_keys=keys)
    async with serve(scripted(fake, ["word "] * 400, step_time=0.005), config=config) as server:
        headers = {"Authorization": "Bearer key-a"}
        body = {**ASK, "background": True, "max_output_tokens": 400}
        first = read((await server.post(PATH, headers, **body)).text)
        refused = await server.post(PATH, headers, **body)
        assert refused.status_code == 429 and "Retry-After" in refused.headers
        await server.client.post(f"{PATH}/{first.id}/cancel", headers=headers)
        assert (await server.post(PATH, headers, **body)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_its_response(serve, fake, stream):
    async with serve(scripted(fake, ["word "] * 400, step_time=0.005)) as server:
        body = {**ASK, "max_output_tokens": 400, "stream": stream}
        async with httpx.AsyncClient(base_url=server.url) as client:
            asked = asyncio.create_task(client.post(PATH, json=body))
            await until(lambda: server.stats().generated_tokens > 3)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        await until(lambda: server.stats().finished.get(FinishReason.CANCELLED, 0) == 1)
        await server.all_is_free()
        assert len(server.app.state.responses.store) == 0


async def test_a_deadline_ends_a_response(serve, fake):
    async with serve(scripted(fake, ["word "] * 400, step_time=0.005)) as server:
        fields = {"max_output_tokens": 400, "timeout": 1.0}
        cut = await create(server, **fields)
        assert cut.status == "failed" and cut.output_text.startswith("word ") and cut.error.message
        events = await streamed(server, **fields)
        assert events[-1].type == "response.failed" and events[-1].response.error.code == "server_error"
        late = await server.post(PATH, **ASK, timeout=1e-9)
        assert late.status_code == 504 and late.json()["error"]["code"] in ("timeout", "queue_timeout")
        events = await streamed(server, timeout=1e-9)
        assert [event.type for event in events][-1] == "response.failed"
        await server.all_is_free()


async def test_a_full_queue_is_429(serve, fake):
    model = scripted(fake, ["word "] * 400, step_time=0.005, max_num_seqs=1, max_queued_requests=1)
    async with serve(model) as server:
        running = [await create(server, background=True, max_output_tokens=400)]
        await until(lambda: server.stats().running == 1)
        running.append(await create(server, background=True, max_output_tokens=400))
        refused = await server.post(PATH, **ASK)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        for response in running:
            assert (await server.client.post(f"{PATH}/{response.id}/cancel")).status_code == 200


async def test_many_at_once_are_each_whole(serve, fake):
    async with serve(scripted(fake, THOUGHT)) as server:

        async def one(number):
            if number % 3 == 0:
                return await ended(server, (await create(server, background=True)).id)
            return (await streamed(server))[-1].response if number % 3 == 1 else await create(server)

        responses = await asyncio.gather(*(one(number) for number in range(30)))
        assert {response.output_text for response in responses} == {"It is four"}
        assert len({response.id for response in responses}) == 30
        await server.all_is_free()
