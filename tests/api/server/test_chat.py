import asyncio
import json

import pytest

from millstream.api.server.config import ServerConfig
from millstream.engine import ModelConfig


def parsed(events):
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def joined(chunks, index=0):
    """Text of one choice, and its finish reasons."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    return text, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


@pytest.mark.torch
async def test_answers_whole_and_streamed_alike(serve, question, answer):
    async with serve() as server:
        fields = {"messages": question, "temperature": 0, "max_tokens": 100}
        whole = (await server.post("/v1/chat/completions", **fields)).json()
        [choice] = whole["choices"]
        assert choice["message"] == {"role": "assistant", "content": answer, "refusal": None}
        assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
        assert whole["object"] == "chat.completion" and whole["model"] == "pyhelp"
        usage = whole["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

        chunks = parsed(
            await server.events("/v1/chat/completions", **fields, stream_options={"include_usage": True})
        )
        assert joined(chunks) == (answer, ["stop"])
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == usage["completion_tokens"]
        assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 16


@pytest.mark.torch
async def test_continuous_usage_counts_up(serve, question):
    async with serve() as server:
        options = {"continuous_usage_stats": True}
        chunks = parsed(
            await server.events(
                "/v1/chat/completions", messages=question, max_tokens=5, stream_options=options
            )
        )
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == 5
        plain = parsed(await server.events("/v1/chat/completions", messages=question, max_tokens=2))
        assert all("usage" not in chunk for chunk in plain)


@pytest.mark.torch
async def test_several_choices_are_each_whole(serve, question):
    async with serve() as server:
        fields = {"messages": question, "n": 3, "seed": 7, "temperature": 2, "max_tokens": 12}
        whole = (await server.post("/v1/chat/completions", **fields)).json()
        texts = [choice["message"]["content"] for choice in whole["choices"]]
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2] and len(set(texts)) == 3
        assert whole["usage"]["completion_tokens"] == 36
        chunks = parsed(await server.events("/v1/chat/completions", **fields))
        assert [joined(chunks, index) for index in range(3)] == [(text, ["length"]) for text in texts]


@pytest.mark.torch
async def test_logprobs_have_a_row_per_token(serve, question):
    async with serve() as server:
        fields = {
            "messages": question,
            "temperature": 0,
            "max_tokens": 6,
            "logprobs": True,
            "top_logprobs": 3,
        }
        whole = (await server.post("/v1/chat/completions", **fields)).json()
        rows = whole["choices"][0]["logprobs"]["content"]
        assert len(rows) == 6
        for row in rows:
            assert len(row["top_logprobs"]) == 3
            assert row["top_logprobs"][0]["token"] == row["token"]  # greedy takes the most likely one
            assert bytes(row["bytes"]).decode() == row["token"]
        assert "".join(row["token"] for row in rows) == whole["choices"][0]["message"]["content"]
        chunks = parsed(await server.events("/v1/chat/completions", **fields))
        streamed = [
            row
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["logprobs"]
            for row in choice["logprobs"]["content"]
        ]
        assert [row["token"] for row in streamed] == [row["token"] for row in rows]
        for again, row in zip(streamed, rows, strict=True):
            assert again["logprob"] == pytest.approx(row["logprob"], abs=1e-4)  # its prompt was cached


@pytest.mark.torch
async def test_stop_strings_and_stop_tokens_are_named(serve, question):
    async with serve() as server:
        fields = {"messages": question, "temperature": 0}
        cut = (await server.post("/v1/chat/completions", **fields, stop=["pathname"])).json()["choices"][0]
        assert cut["message"]["content"] == "os.path.join: Join two or more "
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", "pathname")
        shown = await server.post(
            "/v1/chat/completions", **fields, stop="pathname", include_stop_str_in_output=True
        )
        assert shown.json()["choices"][0]["message"]["content"] == "os.path.join: Join two or more pathname"


@pytest.mark.torch
async def test_continues_the_final_message(serve, question, answer):
    async with serve() as server:
        begun = [*question, {"role": "assistant", "content": "os.path.join: Join two"}]
        fields = {"messages": begun, "temperature": 0, "continue_final_message": True}
        rest = (await server.post("/v1/chat/completions", **fields)).json()["choices"][0]["message"][
            "content"
        ]
        assert "os.path.join: Join two" + rest == answer
        echoed = (await server.post("/v1/chat/completions", **fields, echo=True)).json()
        assert echoed["choices"][0]["message"]["content"] == answer


@pytest.mark.torch
async def test_prompt_scores_and_token_ids(serve, question):
    async with serve() as server:
        fields = {"messages": question, "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
        whole = (await server.post("/v1/chat/completions", **fields)).json()
        ids = whole["prompt_token_ids"]
        assert len(whole["prompt_logprobs"]) == len(ids) == whole["usage"]["prompt_tokens"]
        assert whole["prompt_logprobs"][0] is None and str(ids[1]) in whole["prompt_logprobs"][1]
        assert len(whole["choices"][0]["token_ids"]) == 2
        chunks = parsed(await server.events("/v1/chat/completions", **fields))
        assert chunks[0]["prompt_token_ids"] == ids
        assert chunks[0]["prompt_logprobs"][0] is None
        streamed = [i for chunk in chunks for choice in chunk["choices"] for i in choice.get("token_ids", ())]
        assert len(streamed) == 2


@pytest.mark.torch
async def test_the_template_can_be_another(serve, question):
    async with serve(config=ServerConfig(trust_request_templates=True)) as server:
        fields = {"model": "pyhelp", "messages": question}
        kwargs = {
            "chat_template": "{{ shout }}{{ messages[0].content }}",
            "chat_template_kwargs": {"shout": "!"},
        }
        asked = await server.post("/tokenize", **fields, **kwargs)
        text = await server.post("/detokenize", tokens=asked.json()["tokens"])
        assert text.json()["prompt"] == "!What does os.path.join do?"
        bad = await server.post("/v1/chat/completions", **fields, chat_template="{% for")
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "chat_template"


@pytest.mark.torch
async def test_templates_of_clients_are_not_trusted(serve, question):
    async with serve() as server:
        for path in ("/v1/chat/completions", "/tokenize"):
            refused = await server.post(path, messages=question, chat_template="{% for i in range(9**9) %}")
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "chat_template"


async def test_a_model_without_template_is_refused_by_name(serve, fake, question):
    async with serve(fake()) as server:
        refused = await server.post("/v1/chat/completions", messages=question)
        assert refused.status_code == 400
        assert "template" in refused.json()["error"]["message"]


@pytest.mark.torch
async def test_the_server_s_template_replaces_the_model_s(serve, question, chat_template):
    async with serve(config=ServerConfig(chat_template=chat_template)) as server:
        asked = (await server.post("/tokenize", messages=question, return_token_strs=True)).json()
        assert "".join(asked["token_strs"]) == "<user>What does os.path.join do?</user><assistant>"


@pytest.mark.torch
@pytest.mark.parametrize("stream", [False, True])
async def test_one_neighbour_s_bad_request_disturbs_nobody(serve, question, answer, stream):
    async with serve(ModelConfig(model="pyhelp", max_length=512, num_blocks=256)) as server:

        async def good():
            reply = await server.post("/v1/chat/completions", messages=question, temperature=0)
            return reply.json()["choices"][0]["message"]["content"]

        async def bad(**fields):
            body = {"messages": question, "stream": stream, **fields}
            return (await server.post("/v1/chat/completions", **body)).status_code

        results = await asyncio.gather(
            good(),
            bad(temperature=-1),
            good(),
            bad(logit_bias={"999999999": 1}),
            bad(max_length=10_000),
            good(),
            bad(stop_token_ids=[10**8]),
        )
        assert results == [answer, 400, answer, 400, 400, answer, 400]
        await server.all_is_free()
