"""Lists of models, loading and unloading, tokens, embeddings, the /old and the reserved routes."""

import asyncio
import base64
import json
import struct

import pytest

from millstream.api.server.config import ServerConfig
from millstream.api.server.keys import ApiKey
from millstream.api.server.routes.reserved import AREAS
from millstream.engine import ModelConfig

ADMIN = {"Authorization": "Bearer secret"}


@pytest.fixture
def poet(tmp_path):
    """An adapter's file; the fake worker does not look into it."""
    path = tmp_path / "poet.gguf"
    path.write_bytes(b"")
    return str(path)


async def test_models_are_listed_with_the_default_first(serve, fake, poet):
    async with serve(fake("b"), fake("org/a", adapters={"poet": poet})) as server:
        listed = (await server.client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["b", "org/a", "poet"]
        assert listed["data"][2]["parent"] == "org/a" and listed["data"][2]["root"] == poet
        assert (await server.client.get("/v1/models/org/a")).json() == listed["data"][1]
        missing = await server.client.get("/v1/models/c")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        unnamed = (await server.post("/v1/completions", prompt=[1], max_tokens=1)).json()
        assert unnamed["model"] == "b"
        named = (await server.post("/v1/completions", model="poet", prompt=[1], max_tokens=1)).json()
        assert named["model"] == "poet"


async def test_an_adapter_s_cache_and_answers_are_its_own(serve, fake, poet):
    async with serve(fake(adapters={"poet": poet})) as server:
        prompt = list(range(40))

        async def cached(model):
            whole = (await server.post("/v1/completions", model=model, prompt=prompt, max_tokens=1)).json()
            return whole["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert [await cached(name) for name in ("fake", "poet", "fake", "poet")] == [0, 0, 32, 32]


@pytest.mark.torch
async def test_models_come_and_go(serve, fake):
    config = ServerConfig(admin_key="secret")
    async with serve(fake(), config=config) as server:
        loaded = await server.post("/load", ADMIN, model="pyhelp", name="help", max_length=256, num_blocks=64)
        assert loaded.status_code == 200 and loaded.json()["max_model_len"] == 256
        assert (await server.post("/load", ADMIN, model="pyhelp", name="help")).status_code == 409
        text = (await server.post("/v1/completions", model="help", prompt="os", max_tokens=2)).json()
        assert text["model"] == "help"
        gone = await server.post("/unload", ADMIN, model="help")
        assert gone.json() == {"id": "help", "object": "model", "deleted": True}
        assert (await server.post("/v1/completions", model="help", prompt="os")).status_code == 404
        assert (await server.post("/unload", ADMIN, model="help")).status_code == 404
        for body in ({"model": "no/such folder"}, {"model": "pyhelp", "name": "x", "block_size": 17}):
            refused = await server.post("/load", ADMIN, **body)
            assert refused.status_code in (400, 404), refused.text
        assert [model.name for model in server.service.models()] == ["fake"]


async def test_unloading_waits_for_requests_or_cancels_them(serve, fake):
    from millstream.backends.fake import FakeBackend

    def slow(name):
        return fake(name, backend=FakeBackend(vocab_size=200, max_length=512, step_time=0.01))

    async with serve(slow("a"), slow("b"), config=ServerConfig(admin_key="secret")) as server:
        asked = [
            asyncio.create_task(
                server.post("/v1/completions", model=name, prompt=[1], max_tokens=tokens, ignore_eos=True)
            )
            for name, tokens in (("a", 20), ("b", 500))
        ]
        for name in "ab":
            while not server.stats(name).running:
                await asyncio.sleep(0.002)
        assert (await server.post("/unload", ADMIN, model="a")).status_code == 200
        assert (await server.post("/unload", ADMIN, model="b", timeout=0.01)).status_code == 200
        first, second = [(await task).json()["choices"][0]["finish_reason"] for task in asked]
        assert (first, second) == ("length", "cancelled")


@pytest.mark.torch
async def test_tokens_there_and_back(serve):
    async with serve() as server:
        text = "What does os.path.join do? Ünïcödé ✓"
        asked = (await server.post("/tokenize", prompt=text, return_token_strs=True)).json()
        assert asked["count"] == len(asked["tokens"]) == len(asked["token_strs"])
        assert asked["max_model_len"] == 512
        back = await server.post("/detokenize", tokens=asked["tokens"])
        assert back.json()["prompt"] == text
        for body in ({}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}):
            refused = await server.post("/tokenize", **body)
            assert refused.status_code == 400 and "prompt" in refused.json()["error"]["message"]
        outside = await server.post("/detokenize", tokens=[10**6])
        assert outside.status_code == 400


@pytest.mark.torch
async def test_embeddings_in_both_encodings(serve):
    async with serve() as server:
        texts = ["os.path.join", "shutil.copy"]
        whole = (await server.post("/v1/embeddings", input=texts)).json()
        assert [row["index"] for row in whole["data"]] == [0, 1]
        vectors = [row["embedding"] for row in whole["data"]]
        assert all(sum(x * x for x in vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
        packed = (await server.post("/v1/embeddings", input=texts, encoding_format="base64")).json()
        for row, vector in zip(packed["data"], vectors, strict=True):
            raw = base64.b64decode(row["embedding"])
            assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(vector, abs=1e-6)
        short = (await server.post("/v1/embeddings", input=texts[0], dimensions=8)).json()
        assert len(short["data"][0]["embedding"]) == 8
        ids = (await server.post("/tokenize", prompt=texts[0])).json()["tokens"]
        by_ids = (await server.post("/v1/embeddings", input=[ids, ids])).json()
        assert by_ids["data"][1]["embedding"] == pytest.approx(vectors[0], abs=1e-5)
        assert whole["usage"]["prompt_tokens"] == whole["usage"]["total_tokens"] > 0
        large = await server.post("/v1/embeddings", input="x", dimensions=100_000)
        assert large.status_code == 400 and large.json()["error"]["param"] == "dimensions"
        await server.all_is_free()


@pytest.mark.torch
async def test_the_old_routes_talk_to_one_model(serve, fake, question, answer):
    pyhelp = ModelConfig(model="pyhelp", max_length=512, num_blocks=128)
    async with serve(fake(), pyhelp, config=ServerConfig(admin_key="secret")) as server:
        assert (await server.client.get("/old/status")).json()["model"] == "fake"
        ready = await server.post("/old/initialize", model="pyhelp")
        assert ready.json() == {"status": "ready", "model": "pyhelp", "models": ["fake", "pyhelp"]}
        whole = (await server.post("/old/generate", messages=question, temperature=0)).json()
        assert whole == {"response": answer, "model": "pyhelp", "finish_reason": "stop"}
        events = [
            json.loads(event)
            for event in await server.events_of("/old/stream", messages=question, temperature=0)
        ]
        assert "".join(event["token"] for event in events) == answer
        assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["stop"]
        refused = await server.post("/old/initialize", model="pyhelp", name="second")
        assert refused.status_code == 403
        loaded = await server.post("/old/initialize", ADMIN, model="pyhelp", name="second", num_blocks=64)
        assert loaded.json()["model"] == "second"


@pytest.mark.parametrize("area", AREAS)
async def test_reserved_routes_say_so(serve_once, area):
    for method, path in (("POST", f"/v1/{area}"), ("GET", f"/v1/{area}/x/y")):
        answer = await serve_once.client.request(method, path)
        assert answer.status_code == 501
        assert answer.json()["error"]["type"] == "not_implemented_error"


async def test_keys_open_doors_and_priorities_have_a_floor(serve, fake):
    keys = (ApiKey(name="ann", key="k1", priority=2), ApiKey(name="bob", key="k2"))
    async with serve(fake(), config=ServerConfig(api_keys=keys)) as server:
        body = {"prompt": list(range(40)), "max_tokens": 1}
        assert (await server.post("/v1/completions", **body)).status_code == 401

        async def cached(key, **fields):
            headers = {"Authorization": f"Bearer {key}"}
            whole = await server.post("/v1/completions", headers, **body, **fields)
            return whole.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        # Neither by default nor by naming the same salt does one tenant reach another's prefixes.
        assert [await cached("k1"), await cached("k2"), await cached("k1")] == [0, 0, 32]
        assert [await cached("k1", cache_salt="s"), await cached("k2", cache_salt="s")] == [0, 0]
        assert await cached("k2", cache_salt="ann") == 0
        refused = await server.post("/v1/completions", {"X-API-Key": "k1"}, **body, priority=-1)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "priority"


async def test_unknown_fields_are_dropped_where_that_is_asked_for(serve, fake, caplog):
    body = {"prompt": [1], "max_tokens": 1, "no_such_field": 1}
    async with serve(fake()) as server:
        refused = await server.post("/v1/completions", **body)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "no_such_field"
    async with serve(fake(), config=ServerConfig(refuse_unknown_fields=False)) as server:
        assert (await server.post("/v1/completions", **body)).status_code == 200
        assert "no_such_field" in caplog.text
        assert (await server.post("/v1/completions", **{**body, "max_tokens": "x"})).status_code == 400


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_prompts_are_logged_only_where_that_is_allowed(serve, fake, caplog, log_prompts):
    caplog.set_level("DEBUG")
    async with serve(fake(), config=ServerConfig(log_prompts=log_prompts)) as server:
        for body in ({"prompt": "confidential"}, {"prompt": "confidential", "temperature": -1}):
            answer = (await server.post("/v1/completions", **body, max_tokens=3)).text
            records = [vars(record) for record in caplog.records]
            assert any("confidential" in str(record) for record in records) is log_prompts
            assert any(answer in str(record.get("response_body")) for record in records) is log_prompts
