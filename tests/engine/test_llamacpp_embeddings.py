"""The whole engine gives the embeddings of GGUF files that torch gives, in any company."""

import asyncio
import random
from contextlib import asynccontextmanager
from math import hypot

import numpy as np
import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.engine import AsyncEngine, ModelConfig, Pooling, PoolingParams, SamplingParams
from millstream.errors import InvalidArgument, LimitExceeded, NotSupported

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from ..backends.llamacpp.small_models import LENGTH, hidden_states, save_bert, vocabulary, with_key

TOLERANCE = 6e-3
"""Length of a difference as a share of the embedding's: keys, values and the sums over them have 16 bits."""
RAW = PoolingParams(normalize=False)


@asynccontextmanager
async def running(path, **config):
    async with AsyncEngine() as engine:
        config = {"max_num_seqs": 8, "threads": 1, **config}
        await engine.install_model(ModelConfig(model=str(path), name="m", **config))
        await engine.start_model("m")
        yield engine


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "bert.gguf"
    return save_bert(path), path


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    path = tmp_path_factory.mktemp("causal") / "causal.gguf"
    return with_key(BUNDLED_MODELS["pyhelp-bf16"], path, "llama.pooling_type", 3)


def prompts_of(vocab_size, count, longest):
    rng = random.Random(7)
    return [[rng.randrange(5, vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def error(found, expected):
    found, expected = (
        np.array([each.vector if hasattr(each, "vector") else each for each in side])
        for side in (found, expected)
    )
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


async def test_an_encoder_in_the_engine(bert):
    model, path = bert
    prompts = prompts_of(len(vocabulary()), 40, LENGTH)
    async with running(path, max_num_batched_tokens=LENGTH) as engine:
        found = await engine.embed("m", prompts, RAW)
        assert [each.num_tokens for each in found] == [len(prompt) for prompt in prompts]
        assert error(found, [hidden_states(model, prompt).mean(0) for prompt in prompts]) < TOLERANCE
        firsts = await engine.embed("m", prompts[:5], PoolingParams(pooling=Pooling.CLS, normalize=False))
        assert error(firsts, [hidden_states(model, prompt)[0] for prompt in prompts[:5]]) < TOLERANCE
        assert engine.stats("m").held_blocks == 0


async def test_texts_get_the_tokens_that_the_encoder_was_made_for(bert):
    async with running(bert[1]) as engine:
        (found,) = await engine.embed("m", ["Hello, world"])
        ids = [2, *(vocabulary().index(word) for word in ("hello", ",", "world")), 3]
        assert found == (await engine.embed("m", [ids]))[0]
        assert found.num_tokens == 5
        assert hypot(*found.vector) == pytest.approx(1)
        with pytest.raises(NotSupported, match="gives embeddings and generates no text"):
            await engine.start_request("m", "hello", SamplingParams())
        with pytest.raises(InvalidArgument, match="dimensions is 65; allowed: 1 to 64"):
            await engine.embed("m", [ids], PoolingParams(dimensions=65))
        with pytest.raises(LimitExceeded):
            await engine.embed("m", [[5] * (LENGTH + 1)])


async def test_a_prompt_that_a_step_cannot_hold_is_refused(bert):
    async with running(bert[1], max_num_batched_tokens=32) as engine:
        with pytest.raises(LimitExceeded, match="32"):
            await engine.embed("m", [[5] * 33])
        assert len(await engine.embed("m", [[5] * 32])) == 1


@pytest.mark.parametrize("num_blocks", [None, 40], ids=["streams", "unified"])
async def test_a_causal_model_in_the_engine(causal, num_blocks):
    """In chunks of 32 tokens, among others, and preempted where the pool is small, as in one go alone."""
    prompts = prompts_of(4096, 24, 150)
    params = PoolingParams(pooling=Pooling.MEAN)
    async with running(causal, max_length=256, max_num_batched_tokens=256, max_num_seqs=1) as engine:
        alone = await engine.embed("m", prompts, params)
        last = await engine.embed("m", prompts)
    config = {"max_length": 256, "max_num_batched_tokens": 32, "num_blocks": num_blocks}
    async with running(causal, **config) as engine:
        found = await asyncio.gather(*(engine.embed("m", [prompt], params) for prompt in prompts))
        assert error([each for (each,) in found], alone) < TOLERANCE
        assert error(await engine.embed("m", prompts), last) < TOLERANCE
        assert error(last, alone) > 0.1
        assert engine.stats("m").held_blocks == 0


async def test_a_chat_model_gives_embeddings_and_the_same_texts_beside_them():
    prompts = prompts_of(4096, 8, 100)
    params = SamplingParams(temperature=0, max_new_tokens=16, ignore_eos=True)
    mean = PoolingParams(pooling=Pooling.MEAN, normalize=False)
    config = {"max_length": 256, "max_num_batched_tokens": 64}
    async with running("pyhelp-bf16", **config) as engine:
        alone = []
        for prompt in prompts[:4]:
            _, stream = await engine.start_request("m", prompt, params)
            await stream.await_finished()
            alone.append(stream.get().token_ids)
        vectors = [(await engine.embed("m", [prompt], mean))[0] for prompt in prompts]
        streams = [(await engine.start_request("m", prompt, params))[1] for prompt in prompts[:4]]
        found = await engine.embed("m", prompts, mean)
        last = await engine.embed("m", prompts, RAW)
        await asyncio.gather(*(stream.await_finished() for stream in streams))
        assert [stream.get().token_ids for stream in streams] == alone
        assert engine.stats("m").held_blocks == 0
    assert error(found, vectors) < TOLERANCE
    assert error(last, vectors) > 0.1
