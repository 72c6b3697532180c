import asyncio
import json

import pytest
from openai import OpenAI

from .responses import ASK, PATH, THOUGHT, client_of, create, read, scripted, streamed


async def test_a_client_of_openais_gets_an_answer_in_every_way(serve, question, answer):
    async with serve() as server:
        text = question[0]["content"]
        fields = {"model": "pyhelp", "input": text, "temperature": 0, "max_output_tokens": 100}
        async with client_of(server) as client:
            whole = await client.responses.create(**fields)
            assert whole.output_text == answer and whole.status == "completed"
            stream = await client.responses.create(**fields, stream=True)
            parts = [event async for event in stream]
            assert "".join(part.delta for part in parts if part.type.endswith("text.delta")) == answer
            async with client.responses.stream(**fields) as helped:
                async for _ in helped:
                    pass
                assert (await helped.get_final_response()).output_text == answer
        plain = await create(server, **fields, stop=None, ignore_eos=False)
        assert plain.output_text == answer

        def ask():
            with OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
                first = client.responses.create(**fields)
                items = [{"role": "user", "content": text}, *first.output]
                items.append({"role": "user", "content": "Please repeat that."})
                again = client.responses.create(**{**fields, "input": items})
                chained = client.responses.create(
                    **{**fields, "input": "Please repeat that."}, previous_response_id=first.id
                )
                return again.output_text, chained.output_text, again.usage, chained.usage

        again, chained, usage, chained_usage = await asyncio.to_thread(ask)
        assert again == chained and usage.input_tokens == chained_usage.input_tokens > 20
        assert chained_usage.input_tokens_details.cached_tokens > 0
        await server.all_is_free()


async def test_a_response_says_what_was_asked_for(serve, fake):
    async with serve(scripted(fake)) as server:
        asked = {
            "instructions": "Be brief.",
            "max_output_tokens": 50,
            "temperature": 0.5,
            "top_p": 0.75,
            "metadata": {"topic": "sums"},
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "truncation": "auto",
            "tool_choice": "none",
            "tools": [],
            "parallel_tool_calls": False,
            "max_tool_calls": 3,
            "service_tier": "flex",
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "text"}, "verbosity": "low"},
        }
        response = await create(server, **asked)
        shown = response.model_dump(exclude_none=True)
        assert {name: shown[name] for name in asked if name != "service_tier"} == {
            name: value for name, value in asked.items() if name != "service_tier"
        }
        assert shown["service_tier"] == "default" and shown["model"] == "fake" and shown["store"] is True
        assert shown["status"] == "completed" and shown["completed_at"] >= shown["created_at"]
        [message] = shown["output"]
        assert message["id"].startswith("msg_") and response.id.startswith("resp_")
        assert message["content"] == [
            {"type": "output_text", "text": "It is four", "annotations": [], "logprobs": []}
        ]
        assert shown["usage"]["output_tokens"] == 3
        assert shown["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
        bare = await create(server)
        assert (bare.metadata, bare.tool_choice, bare.truncation) == ({}, "auto", "disabled")
        assert bare.background is False and bare.parallel_tool_calls is True and bare.instructions is None


async def test_the_answer_is_cut_off_where_it_may_be_no_longer(serve, fake):
    async with serve(scripted(fake)) as server:
        response = await create(server, max_output_tokens=2)
        assert response.status == "incomplete" and response.output_text == "It is four"
        assert response.incomplete_details.reason == "max_output_tokens" and response.completed_at is None
        assert response.output[0].status == "incomplete"
        events = await streamed(server, max_output_tokens=2)
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.output[0].content[0].text == "It is four"


async def test_events_come_in_openais_order(serve, fake):
    async with serve(scripted(fake)) as server:
        events = await streamed(server)
        kinds = [event.type.removeprefix("response.") for event in events]
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert kinds == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            *["output_text.delta"] * len(deltas),
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ]
        assert deltas and "".join(event.delta for event in deltas) == "It is four"
        created, added, done = events[0].response, events[2].item, events[-2].item
        assert created.status == "in_progress" and created.output == [] and created.usage is None
        assert (added.status, added.content, done.status) == ("in_progress", [], "completed")
        assert {event.item_id for event in deltas} == {added.id} == {done.id}
        final = events[-1].response
        assert final.output == [done] and final.usage.output_tokens == 3
        assert read((await server.client.get(f"{PATH}/{final.id}")).text) == final


async def test_a_very_long_conversation_is_refused_as_such(serve, fake):
    async with serve(scripted(fake)) as server:
        error = await create(server, 400, input=[{"role": "user", "content": "y" * 50_000}])
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


async def test_each_event_bears_its_type_as_name(serve, fake):
    async with serve(scripted(fake)) as server:
        body = {**ASK, "stream": True, "stream_options": {"include_obfuscation": False}}
        text = (await server.post(PATH, **body)).text
        events = [event for event in text.strip().split("\n\n") if not event.startswith(":")]
        assert len(events) > 3
        for event in events:
            name, data = event.split("\n")
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


async def test_reasoning_is_an_item_of_its_own(serve, fake):
    async with serve(scripted(fake, THOUGHT)) as server:
        response = await create(server)
        thought, message = response.output
        assert thought.type == "reasoning" and thought.summary == [] and thought.status == "completed"
        assert [part.text for part in thought.content] == ["Well, 2"]
        assert message.content[0].text == "It is four"
        assert response.usage.output_tokens == 11
        assert response.usage.output_tokens_details.reasoning_tokens == 7

        events = await streamed(server)
        kinds = [event.type.removeprefix("response.") for event in events]
        order = list(dict.fromkeys(kinds))
        assert order == [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_text.delta",
            "output_text.done",
            "completed",
        ]
        assert kinds.index("output_text.delta") > kinds.index("output_item.done")
        by_kind = {kind: [e for e in events if e.type == f"response.{kind}"] for kind in order}
        assert "".join(event.delta for event in by_kind["reasoning_text.delta"]) == "Well, 2"
        assert by_kind["reasoning_text.done"][0].text == "Well, 2"
        assert [event.output_index for event in by_kind["output_item.added"]] == [0, 1]
        final = events[-1].response
        assert final.usage.output_tokens_details.reasoning_tokens == 7
        assert [item.type for item in final.output] == ["reasoning", "message"]


async def test_an_answer_that_ends_within_its_reasoning_has_no_message(serve, fake):
    async with serve(scripted(fake, THOUGHT)) as server:
        response = await create(server, max_output_tokens=5)
        [thought] = response.output
        assert thought.status == "incomplete" and thought.content[0].text == "Well, 2"
        assert response.usage.output_tokens_details.reasoning_tokens == 5
        closed = await create(server, max_output_tokens=6)
        assert [item.type for item in closed.output] == ["reasoning"]


async def test_reasoning_goes_back_to_the_model(serve, fake):
    async with serve(scripted(fake, THOUGHT)) as server:
        first = await create(server)
        ask = {"role": "user", "content": "Sure?"}
        chained = await create(server, previous_response_id=first.id, input=[ask])
        told = {"role": "user", "content": ASK["input"]}
        items = [told, *(item.model_dump(exclude_none=True) for item in first.output), ask]
        given = await create(server, input=items)
        assert chained.usage.input_tokens == given.usage.input_tokens
        silent = await create(server, input=[told, items[2], ask])
        assert given.usage.input_tokens - silent.usage.input_tokens == len("<think>Well, 2</think>")
        by_id = [{"type": "item_reference", "id": item["id"]} for item in items[1:3]]
        referred = await create(server, input=[told, *by_id, ask])
        assert referred.usage.input_tokens == given.usage.input_tokens


async def test_the_effort_reaches_the_template(serve, fake):
    async with serve(scripted(fake)) as server:
        shown = {"chat_template_kwargs": {"effort_shown": True}}
        low, high = [await create(server, reasoning={"effort": e}, **shown) for e in ("low", "high")]
        assert high.usage.input_tokens - low.usage.input_tokens == 1


@pytest.mark.parametrize(("pieces", "count"), [(["It is", " four", "<end>"], 3), (THOUGHT, 4)])
async def test_logprobs_are_those_of_the_answers_tokens(serve, fake, pieces, count):
    async with serve(scripted(fake, pieces)) as server:
        fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "temperature": 0}
        response = await create(server, **fields)
        rows = response.output[-1].content[0].logprobs
        assert len(rows) == count and response.top_logprobs == 1
        assert all(row.logprob == -0.5 and len(row.top_logprobs) == 1 for row in rows)
        events = await streamed(server, **fields)
        deltas = [row for e in events if e.type == "response.output_text.delta" for row in e.logprobs]
        [done] = [e for e in events if e.type == "response.output_text.done"]
        assert [row.token for row in deltas] == [row.token for row in done.logprobs]
        assert [row.token for row in rows] == [row.token for row in deltas]
