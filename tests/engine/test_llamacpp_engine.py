"""The whole engine on llama.cpp gives a plain loop's tokens, however requests are cut, mixed and resumed."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
import pytest

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.engine import AsyncEngine, FinishReason, ModelConfig, RequestOptions, SamplingParams

llama_cpp = pytest.importorskip("llama_cpp")

from millstream.backends.llamacpp.backend import LlamaCppBackend  # noqa: E402
from millstream.backends.llamacpp.library import load_library  # noqa: E402

MODEL = "pyhelp-bf16"
MAX_LENGTH = 256
EOS = (0, 2)
# (token budget, sequences at once): with 16 tokens a step, most prompts come in several chunks.
BUDGETS = [(16, 16), (64, 32), (512, 32)]


class PlainLoop:
    """llama.cpp alone, with the worker's settings: one sequence, one token after the other, up to its end."""

    def __init__(self, path):
        self.api = load_library()
        self.model = self.api.llama_model_load_from_file(
            str(path).encode(), self.api.llama_model_default_params()
        )
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = MAX_LENGTH
        settings.n_threads = settings.n_threads_batch = 1
        self.context = self.api.llama_init_from_model(self.model, settings)

    def greedy(self, prompt, count):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        tokens = list(prompt)
        while len(tokens) < len(prompt) + count and tokens[-1] not in EOS:
            new = tokens if len(tokens) == len(prompt) else tokens[-1:]
            array = (self.api.llama_token * len(new))(*new)  # the batch only points to it
            assert self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(new))) == 0
            logits = self.api.llama_get_logits_ith(self.context, -1)
            tokens.append(int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax()))
        return tokens[len(prompt) :]

    def close(self):
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


@cache
def requests():
    """32 conversations of 10 to 200 tokens that ask for an answer, and the most tokens it may take.

    The model is sure of its answers, where a plain loop's own tokens do not depend on the last bits either.
    """
    tokenizer = LlamaCppBackend().load_tokenizer(LlamaCppBackend().inspect(MODEL, BUNDLED_MODELS[MODEL]))
    rng = random.Random(5)
    with (PYHELP / "facts.jsonl").open() as file:
        facts = [
            fact for fact in map(json.loads, file) if fact["kind"] == "what" and len(fact["answer"]) > 90
        ]
    found = []
    for index in range(32):
        chosen = [rng.choice(facts) for _ in range(1 + index % 4)]
        messages = [
            message
            for fact in chosen
            for message in (
                {"role": "user", "content": f"What does {fact['name']} do?"},
                {"role": "assistant", "content": fact["answer"]},
            )
        ]
        prompt = tokenizer.encode(tokenizer.apply_chat_template(messages[:-1]), add_special_tokens=False)
        found.append((prompt, rng.choice([1, 6, 40, 40])))
    return found


@pytest.fixture(scope="module")
def expected():
    loop = PlainLoop(BUNDLED_MODELS[MODEL])
    yield [loop.greedy(prompt, count) for prompt, count in requests()]
    loop.close()


class RecordingBackend(LlamaCppBackend):
    """Lets a test look at the worker that the engine runs."""

    worker = None

    def load(self, info, config, progress):
        self.worker = super().load(info, config, progress)
        return self.worker


@asynccontextmanager
async def running(**config):
    backend = RecordingBackend()
    async with AsyncEngine() as engine:
        config = {"max_length": MAX_LENGTH, "max_num_seqs": 32, "threads": 1, **config}
        await engine.install_model(
            ModelConfig(model=str(BUNDLED_MODELS[MODEL]), name="m", backend=backend, **config)
        )
        await engine.start_model("m")
        yield engine, backend.worker


async def start(engine, prompt, count, **params):
    asked = SamplingParams(temperature=0, max_new_tokens=count, **params)
    return await engine.start_request("m", prompt, asked, RequestOptions(detokenize=False))


async def tokens_of(stream):
    await stream.await_finished()
    assert stream.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), stream.error
    return stream.get().token_ids


async def answers(engine, wanted):
    """Tokens of all requests, run at once, and the number of their prompt tokens that were cached."""
    streams = [(await start(engine, prompt, count))[1] for prompt, count in wanted]
    return [await tokens_of(stream) for stream in streams], sum(
        stream.num_cached_tokens for stream in streams
    )


@pytest.mark.parametrize(("budget", "seats"), BUDGETS)
async def test_streams_give_the_tokens_of_a_plain_loop(expected, budget, seats):
    async with running(max_num_batched_tokens=budget, max_num_seqs=seats) as (engine, worker):
        assert worker.streams
        outputs, _ = await answers(engine, requests())
        assert outputs == expected
        outputs, cached = await answers(engine, requests()[::-1])
        assert outputs == expected[::-1]
        assert cached > 0
        assert engine.stats("m").held_blocks == 0
        assert worker.map_stats.continued + worker.map_stats.copied > 0


@pytest.mark.parametrize(("budget", "seats"), BUDGETS)
async def test_one_memory_gives_them_with_preemption(expected, budget, seats):
    config = {"max_num_batched_tokens": budget, "max_num_seqs": seats, "num_blocks": 17}
    async with running(**config) as (engine, worker):
        assert not worker.streams
        outputs, _ = await answers(engine, requests())
        assert outputs == expected
        stats = engine.stats("m")
        assert stats.preemptions > 0
        assert stats.held_blocks == 0


@pytest.mark.parametrize("num_blocks", [None, 64], ids=["streams", "unified"])
async def test_prefixes_are_continued_and_copied(expected, num_blocks):
    async with running(num_blocks=num_blocks) as (engine, worker):
        assert worker.streams is (num_blocks is None)
        pairs = [(r, e) for r, e in zip(requests(), expected, strict=True) if len(r[0]) > 60][:4]
        for request, tokens in pairs:
            outputs, _ = await answers(engine, [request])
            before = worker.map_stats
            again, cached = await answers(engine, [request])
            assert outputs == again == [tokens]
            assert cached == (len(request[0]) - 1) // 16 * 16
            stats = worker.map_stats
            assert stats.continued + stats.copied == before.continued + before.copied + 1
            assert stats.missing_tokens == 0
            # Many at once: the first may go on in place, the others cannot.
            outputs, _ = await answers(engine, [request] * 5)
            assert outputs == [tokens] * 5
            assert worker.map_stats.copied >= stats.copied + 4
        # The next turn of a conversation goes on where its stream ended.
        (prompt, _), tokens = pairs[0]
        before = worker.map_stats
        await answers(engine, [([*prompt, *tokens, *prompt[:20]], 1)])
        assert worker.map_stats.continued + worker.map_stats.copied > before.continued + before.copied


async def test_samples_are_copies_of_their_prompt(expected):
    index = max(range(32), key=lambda i: (requests()[i][1], len(requests()[i][0])))
    prompt, count = requests()[index]
    async with running() as (engine, worker):
        handle, _ = await start(engine, prompt, count, n=6)
        assert [await tokens_of(stream) for stream in handle.streams] == [expected[index]] * 6
        assert worker.map_stats.copied >= 5


@pytest.mark.parametrize("num_blocks", [None, 40], ids=["streams", "unified"])
async def test_cancelled_requests_leave_the_others_alone(expected, num_blocks):
    async with running(num_blocks=num_blocks, max_num_batched_tokens=64) as (engine, _):
        for _ in range(2):
            doomed = [
                await start(engine, prompt[:90], 150, ignore_eos=True) for prompt, _ in requests()[1::3]
            ]
            streams = [(await start(engine, prompt, count))[1] for prompt, count in requests()]
            for handle, stream in doomed:
                async for _ in stream:
                    break
                engine.stop_request("m", handle)
            assert [await tokens_of(stream) for stream in streams] == expected
        await asyncio.sleep(0)
        assert engine.stats("m").held_blocks == 0


async def test_with_batch_invariant_twenty_requests_give_the_same_tokens_alone_and_together():
    """Without it, llama.cpp's products depend on the batch, and so may the tokens."""
    config = {"batch_invariant": True, "max_num_batched_tokens": 48, "num_blocks": 80}
    async with running(**config) as (engine, worker):
        assert worker.spec.max_num_seqs == 80 * 16 // MAX_LENGTH
        wanted = [(prompt, 24) for prompt, _ in requests()[:20]]
        alone = []
        for request in wanted:
            (tokens,), _ = await answers(engine, [request])
            (again,), cached = await answers(engine, [request])
            assert again == tokens
            assert cached == (len(request[0]) - 1) // 16 * 16
            alone.append(tokens)
        together, _ = await answers(engine, wanted)
        assert together == alone
