import json
import random

import pytest

from millstream.engine import SamplingParams


def parsed(events):
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.mark.torch
@pytest.mark.parametrize(
    "prompt",
    ["os.path", ["os.path", "shutil"], [264, 78, 309], [[264, 78], [309]]],
    ids=["text", "texts", "ids", "lists of ids"],
)
async def test_prompts_of_every_form(serve, prompt):
    async with serve() as server:
        fields = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "n": 2, "return_token_ids": True}
        whole = (await server.post("/v1/completions", **fields)).json()
        count = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        assert [choice["index"] for choice in whole["choices"]] == list(range(2 * count))
        for choice in whole["choices"]:
            text = await server.post("/detokenize", tokens=choice["token_ids"], skip_special_tokens=True)
            assert text.json()["prompt"] == choice["text"]
        prompts = [tuple(choice["prompt_token_ids"]) for choice in whole["choices"]]
        assert prompts[0] == prompts[1] and len(set(prompts)) == count
        assert whole["usage"]["prompt_tokens"] == sum(len(ids) for ids in prompts[::2])


@pytest.mark.torch
async def test_echo_gives_the_prompt_and_its_scores(serve):
    async with serve() as server:
        fields = {"prompt": "shutil.copy", "max_tokens": 3, "temperature": 0, "logprobs": 2}
        plain = (await server.post("/v1/completions", **fields)).json()["choices"][0]
        echoed = (await server.post("/v1/completions", **fields, echo=True)).json()["choices"][0]
        assert echoed["text"] == "shutil.copy" + plain["text"]
        rows = echoed["logprobs"]
        assert rows["token_logprobs"][0] is None and rows["tokens"][-3:] == plain["logprobs"]["tokens"]
        assert "".join(rows["tokens"]) == echoed["text"]
        offsets = rows["text_offset"]
        assert [echoed["text"][o : o + len(t)] for o, t in zip(offsets, rows["tokens"], strict=True)] == rows[
            "tokens"
        ]
        scored = (
            await server.post("/v1/completions", prompt="shutil.copy", max_tokens=0, echo=True, logprobs=2)
        ).json()
        assert scored["choices"][0]["text"] == "shutil.copy"
        only = scored["choices"][0]["logprobs"]
        assert only["token_logprobs"] == rows["token_logprobs"][: len(only["tokens"])]
        assert len(only["tokens"]) == len(rows["tokens"]) - 3


@pytest.mark.torch
async def test_echo_streams_alike(serve):
    async with serve() as server:
        fields = {
            "prompt": ["shutil.copy", "os"],
            "max_tokens": 5,
            "seed": 3,
            "logprobs": 1,
            "echo": True,
            "n": 2,
        }
        whole = (await server.post("/v1/completions", **fields)).json()
        chunks = parsed(await server.events("/v1/completions", **fields))
        for choice in whole["choices"]:
            mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
            assert "".join(c["text"] for c in mine) == choice["text"]
            for key in ("tokens", "token_logprobs", "text_offset"):
                assert [x for c in mine if c["logprobs"] for x in c["logprobs"][key]] == choice["logprobs"][
                    key
                ]
            assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


async def test_streamed_text_equals_unstreamed_text_for_random_requests(serve, fake):
    draw = random.Random(5)
    async with serve(fake(max_num_seqs=16)) as server:
        for _ in range(40):
            prompts = [
                [draw.randrange(200) for _ in range(draw.randint(1, 40))] for _ in range(draw.randint(1, 3))
            ]
            fields = {
                "prompt": prompts,
                "max_tokens": draw.randint(1, 30),
                "n": draw.randint(1, 3),
                "seed": draw.randrange(1000),
                "temperature": draw.choice([0, 0.7, 1.5]),
                "stop": draw.choice([None, "a", ["xy", "Q"]]),
                "ignore_eos": draw.random() < 0.5,
                "include_stop_str_in_output": draw.random() < 0.5,
            }
            whole = (await server.post("/v1/completions", **fields)).json()
            chunks = parsed(
                await server.events("/v1/completions", **fields, stream_options={"include_usage": True})
            )
            assert len(whole["choices"]) == len(prompts) * fields["n"]
            for choice in whole["choices"]:
                mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
                assert "".join(c["text"] for c in mine) == choice["text"]
                assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
                assert mine[-1]["finish_reason"] is not None
            usage = chunks[-1]["usage"]
            assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
            assert usage["prompt_tokens"] == sum(map(len, prompts)) == whole["usage"]["prompt_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        await server.all_is_free()


async def test_all_prompts_or_none(serve, fake):
    async with serve(fake(max_queued_requests=1, max_num_seqs=1)) as server:
        (name,) = server.engine.models()
        # The second of them waits for the first, and both count as one in the queue.
        await server.engine.start_requests(
            name, [[1], [2]], SamplingParams(max_new_tokens=400, ignore_eos=True)
        )
        refused = await server.post("/v1/completions", prompt=[[1], [2], [3], [4], [5]], max_tokens=400)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        server.engine.cancel_requests(name)
        await server.all_is_free()
        assert (await server.post("/v1/completions", prompt=[1], max_tokens=2)).status_code == 200


async def test_truncated_prompts_keep_their_end(serve, fake):
    async with serve(fake()) as server:
        fields = {"prompt": [1, 2, 3, 4], "truncate_prompt_tokens": 2, "return_token_ids": True}
        whole = (await server.post("/v1/completions", **fields)).json()
        assert whole["choices"][0]["prompt_token_ids"] == [3, 4]


async def test_the_cache_is_apart_by_salt(serve, fake):
    async with serve(fake()) as server:

        async def cached(**fields):
            whole = (
                await server.post("/v1/completions", prompt=list(range(64)), max_tokens=1, **fields)
            ).json()
            return whole["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert await cached() == 0
        assert await cached() == 48
        assert await cached(cache_salt="mine") == 0
        assert await cached(cache_salt="mine") == 48


@pytest.mark.torch
async def test_streamed_token_ids_are_all_there_though_they_have_no_text_yet(serve):
    async with serve() as server:
        first, *_ = (await server.post("/tokenize", prompt="✓", add_special_tokens=False)).json()["tokens"]
        fields = {"prompt": "os", "max_tokens": 12, "allowed_token_ids": [first], "return_token_ids": True}
        chunks = parsed(await server.events("/v1/completions", **fields))
        ids = [i for chunk in chunks for choice in chunk["choices"] for i in choice["token_ids"]]
        assert ids == [first] * 12
