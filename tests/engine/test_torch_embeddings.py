"""The whole engine gives the embeddings of checkpoints that transformers gives, in any company."""

import asyncio
import random
from contextlib import asynccontextmanager
from math import hypot

import pytest
from transformers import AutoModelForCausalLM

from millstream.backends.bundled import PYHELP
from millstream.engine import (
    AsyncEngine,
    FinishReason,
    ModelConfig,
    Pooling,
    PoolingParams,
    SamplingParams,
)
from millstream.errors import InvalidArgument, LimitExceeded, NotSupported

from ..backends.embedder import error
from ..backends.torch.encoder_files import LENGTH, VOCAB, hidden_states, pooled, save_encoder, write_modules

TOLERANCE = 3e-5
RAW = PoolingParams(normalize=False)
MEAN = PoolingParams(normalize=False, pooling=Pooling.MEAN)


@asynccontextmanager
async def running(path, **config):
    async with AsyncEngine() as engine:
        config = {"max_num_seqs": 8, "threads": 1, "dtype": "float32", **config}
        await engine.install_model(ModelConfig(model=str(path), name="m", **config))
        await engine.start_model("m")
        yield engine


@pytest.fixture(scope="module")
def pyhelp():
    return AutoModelForCausalLM.from_pretrained(PYHELP, dtype="float32").eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    return save_encoder("roberta", folder), folder


def prompts_of(vocab_size, count, longest, seed=7):
    rng = random.Random(seed)
    return [[rng.randrange(5, vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def expected_of(model, prompts, pooling):
    return [pooled(hidden_states(model, prompt), pooling) for prompt in prompts]


def vectors(found):
    return [each.vector for each in found]


async def ids_of(stream):
    return [token for output in [each async for each in stream] for token in output.token_ids]


async def test_a_generating_model(pyhelp):
    prompts = prompts_of(4096, 12, 90)
    async with running("pyhelp", max_length=256, max_num_batched_tokens=64) as engine:
        last = await engine.embed("m", prompts, RAW)
        assert [each.num_tokens for each in last] == [len(prompt) for prompt in prompts]
        assert error(vectors(last), expected_of(pyhelp, prompts, Pooling.LAST)) < TOLERANCE
        mean = await engine.embed("m", prompts, MEAN)
        assert error(vectors(mean), expected_of(pyhelp, prompts, Pooling.MEAN)) < TOLERANCE
        (text,) = await engine.embed("m", ["What does os.path.join do?"])
        assert hypot(*text.vector) == pytest.approx(1)
        assert engine.stats("m").held_blocks == 0


async def test_texts_are_the_same_beside_embeddings(pyhelp):
    """And embeddings the same beside texts, after either has filled the prefix cache."""
    prompts = prompts_of(4096, 8, 60, seed=2)
    params = SamplingParams(temperature=0, max_new_tokens=12)
    async with running("pyhelp", max_length=256, max_num_batched_tokens=48) as engine:
        alone = []
        for prompt in prompts:
            _, stream = await engine.start_request("m", prompt, params)
            alone.append(await ids_of(stream))
        streams = [(await engine.start_request("m", prompt, params))[1] for prompt in prompts]
        found = await engine.embed("m", prompts, MEAN)
        last = await engine.embed("m", prompts, RAW)
        assert [await ids_of(stream) for stream in streams] == alone
    assert error(vectors(found), expected_of(pyhelp, prompts, Pooling.MEAN)) < TOLERANCE
    assert error(vectors(last), expected_of(pyhelp, prompts, Pooling.LAST)) < TOLERANCE


@pytest.mark.parametrize("pooling", Pooling)
async def test_preempted_in_its_prompt_by_texts_that_grow(pooling, pyhelp):
    (prompt,) = prompts_of(4096, 1, 1, seed=3)
    prompt *= 150
    texts = [[20 + n] * 15 for n in range(3)]
    config = {"max_length": 256, "max_num_batched_tokens": 6, "max_num_seqs": 4, "num_blocks": 19}
    async with running("pyhelp", **config) as engine:
        params = SamplingParams(temperature=0, max_new_tokens=40, ignore_eos=True)
        streams = [(await engine.start_request("m", text, params))[1] for text in texts]
        handle, stream = await engine.start_embedding(
            "m", prompt, PoolingParams(pooling=pooling, normalize=False)
        )
        await asyncio.gather(*(each.await_finished() for each in (*streams, stream)))
        assert handle.requests[0].num_preemptions > 0
        assert engine.stats("m").held_blocks == 0
    assert error(stream.embedding, pooled(hidden_states(pyhelp, prompt), pooling)) < TOLERANCE


async def test_an_encoder(encoder):
    model, folder = encoder
    prompts = prompts_of(VOCAB, 40, LENGTH)
    async with running(folder, max_num_batched_tokens=LENGTH) as engine:
        found = await engine.embed("m", prompts, RAW)
        assert error(vectors(found), expected_of(model, prompts, Pooling.MEAN)) < TOLERANCE
        first = await engine.embed("m", prompts, PoolingParams(pooling=Pooling.CLS, normalize=False))
        assert error(vectors(first), expected_of(model, prompts, Pooling.CLS)) < TOLERANCE
        with pytest.raises(NotSupported, match="gives embeddings and generates no text"):
            await engine.start_request("m", [5], SamplingParams())
        assert engine.stats("m").held_blocks == 0


async def test_lengths_that_do_not_fit(encoder):
    async with running(encoder[1], max_num_batched_tokens=32) as engine:
        with pytest.raises(LimitExceeded, match=f"'m' takes up to {LENGTH}"):
            await engine.embed("m", [[5] * (LENGTH + 1)])
        with pytest.raises(LimitExceeded, match="which this model needs in one step; at most 32"):
            await engine.embed("m", [[5] * 33])
        with pytest.raises(InvalidArgument):
            await engine.embed("m", [[]])
        with pytest.raises(InvalidArgument):
            await engine.embed("m", [[VOCAB]])
        with pytest.raises(InvalidArgument, match="dimensions is 49; allowed: 1 to 48"):
            await engine.embed("m", [[5]], PoolingParams(dimensions=49))
        assert len(await engine.embed("m", [[5] * 32])) == 1


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
async def test_cancelled_on_the_way(kind, encoder, pyhelp):
    path, vocab_size = ("pyhelp", 4096) if kind == "decoder" else (encoder[1], VOCAB)
    model = pyhelp if kind == "decoder" else encoder[0]
    prompts = prompts_of(vocab_size, 12, LENGTH)
    config = {"max_length": LENGTH, "max_num_batched_tokens": LENGTH, "max_num_seqs": 2}
    async with running(path, **config) as engine:
        handle, stream = await engine.start_embedding("m", prompts[0], RAW)
        task = asyncio.create_task(engine.embed("m", prompts[1:], MEAN))
        await asyncio.sleep(0)
        engine.stop_request("m", handle)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.await_finished()
        assert stream.finish_reason in (FinishReason.CANCELLED, FinishReason.STOP)
        found = await engine.embed("m", prompts, MEAN)
        assert error(vectors(found), expected_of(model, prompts, Pooling.MEAN)) < TOLERANCE
        assert engine.stats("m").held_blocks == 0


async def test_what_the_folder_says_is_the_default(tmp_path):
    model = save_encoder("bert", tmp_path)
    write_modules(tmp_path, "Pooling", "Normalize", pooling={"pooling_mode_cls_token": True}, max_length=20)
    prompts = prompts_of(VOCAB, 5, 20)
    async with running(tmp_path) as engine:
        found = await engine.embed("m", prompts, RAW)
        assert error(vectors(found), expected_of(model, prompts, Pooling.CLS)) < TOLERANCE
        with pytest.raises(LimitExceeded, match="takes up to 20"):
            await engine.embed("m", [[5] * 21])
        with pytest.raises(NotSupported, match="'m' takes no adapters"):
            await engine.load_adapter("m", "a", tmp_path)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            {"quantization": "int8"},
            NotSupported,
            "quantization 'int8' needs a family that the native decoder",
        ),
        ({"kv_cache_dtype": "int8"}, InvalidArgument, "kv_cache_dtype is 'int8'; allowed: 'auto', because"),
        (
            {"max_length": LENGTH + 1},
            InvalidArgument,
            f"max_length is {LENGTH + 1}; allowed: at most {LENGTH}",
        ),
    ],
)
async def test_settings_that_an_encoder_has_not(config, kind, message, encoder):
    async with AsyncEngine() as engine:
        with pytest.raises(kind, match=message):
            await engine.install_model(ModelConfig(model=str(encoder[1]), name="m", **config))


async def test_a_folder_without_normalisation_is_not_normalised(tmp_path):
    model = save_encoder("bert", tmp_path)
    write_modules(tmp_path, "Pooling")
    prompts = prompts_of(VOCAB, 3, 20)
    async with running(tmp_path) as engine:
        found = await engine.embed("m", prompts)
        assert error(vectors(found), expected_of(model, prompts, Pooling.MEAN)) < TOLERANCE
        (normal,) = await engine.embed("m", prompts[:1], PoolingParams(normalize=True))
        assert hypot(*normal.vector) == pytest.approx(1)


async def test_a_last_state_is_computed_behind_a_cached_prefix(pyhelp):
    prompt = prompts_of(4096, 1, 1)[0] * 100
    async with running("pyhelp", max_length=256) as engine:
        await (await engine.start_request("m", prompt, SamplingParams(max_new_tokens=1)))[1].await_finished()
        for params, computed in ((RAW, 4), (MEAN, 100)):
            before = engine.stats("m").prompt_tokens
            found = await engine.embed("m", [prompt], params)
            assert engine.stats("m").prompt_tokens - before == computed
            pooling = params.pooling or Pooling.LAST
            assert error(vectors(found), expected_of(pyhelp, [prompt], pooling)) < TOLERANCE
