"""The whole engine on torch gives transformers' own tokens, however requests are cut, mixed and resumed."""

import random
from functools import cache

import pytest
import torch

from millstream.backends.bundled import PYHELP
from millstream.backends.native import Missing, levels
from millstream.engine import AsyncEngine, FinishReason, ModelConfig, RequestOptions, SamplingParams

from ..backends.torch.checkpoints import VOCAB, greedy, save_checkpoint
from ..backends.torch.modules.test_model import CASES, make_model

NATIVE = [
    "llama",
    "llama3-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "gemma3",
    "smollm3",
    "granite",
    "olmo2",
]
FALLBACK = ["gpt2", "gpt_neox", "mixtral"]
# (token budget, sequences at once): with 16 tokens a step, most prompts come in several chunks.
BUDGETS = [(16, 16), (64, 32), (512, 32)]


def requests(vocab_size, longest, seed=3):
    """32 prompts of random lengths, some with a common beginning, and their output lengths."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, vocab_size) for _ in range(20)]
    prompts = []
    for index in range(32):
        own = [rng.randrange(3, vocab_size) for _ in range(rng.randrange(1, longest))]
        prompts.append(shared + own if index % 4 == 0 else own)
    return [(prompt, rng.choice([1, 3, 6, 40])) for prompt in prompts]


async def answers(engine, wanted, **params):
    """Tokens of all requests, run at once, and the number of their prompt tokens that were cached."""
    streams = []
    for prompt, count in wanted:
        asked = SamplingParams(**{"temperature": 0, "ignore_eos": True, "max_new_tokens": count, **params})
        streams.append((await engine.start_request("m", prompt, asked, RequestOptions(detokenize=False)))[1])
    outputs, cached = [], 0
    for stream in streams:
        await stream.await_finished()
        assert stream.finish_reason is FinishReason.LENGTH, stream.error
        outputs.append(stream.get().token_ids)
        cached += stream.num_cached_tokens
    return outputs, cached


async def check_engine(folder, wanted, expected, num_blocks):
    """Each budget, first with so small a pool that requests are preempted, then with a warm cache."""
    for budget, seats in BUDGETS:
        async with AsyncEngine() as engine:
            await engine.install_model(
                ModelConfig(
                    model=str(folder),
                    name="m",
                    dtype="float32",
                    threads=1,
                    max_length=128,
                    num_blocks=num_blocks,
                    max_num_seqs=seats,
                    max_num_batched_tokens=budget,
                )
            )
            await engine.start_model("m")
            assert (await answers(engine, wanted))[0] == expected
            stats = engine.stats("m")
            assert stats.preemptions > 0
            assert stats.held_blocks == 0
            # One after the other, so that nothing takes the blocks away in between.
            for pair, tokens in list(zip(wanted, expected, strict=True))[::8]:
                await answers(engine, [pair])
                outputs, cached = await answers(engine, [pair])
                assert outputs == [tokens]
                assert cached == (len(pair[0]) - 1) // 16 * 16 > 0


@pytest.mark.parametrize("family", NATIVE)
async def test_native_families_give_the_tokens_of_generate(family, tmp_path):
    model = save_checkpoint(family, tmp_path)
    wanted = requests(VOCAB, 60)
    expected = [greedy(model, prompt, count) for prompt, count in wanted]
    await check_engine(tmp_path, wanted, expected, num_blocks=14)


@pytest.mark.parametrize("family", FALLBACK)
async def test_fallback_families_give_the_tokens_of_generate(family, tmp_path):
    model = make_model(CASES[family])
    model.save_pretrained(tmp_path)
    wanted = requests(VOCAB, 60)
    expected = [greedy(model, prompt, count) for prompt, count in wanted]
    await check_engine(tmp_path, wanted, expected, num_blocks=14)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are slower on several threads than on one."""
    torch.set_num_threads(1)


@cache
def pyhelp_reference():
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(PYHELP, dtype=torch.float32).eval()


async def test_pyhelp_gives_the_tokens_of_generate():
    model = pyhelp_reference()
    wanted = requests(model.config.vocab_size, 60)
    expected = [greedy(model, prompt, count) for prompt, count in wanted]
    await check_engine(PYHELP, wanted, expected, num_blocks=14)


async def test_seeded_sampling_gives_the_same_tokens_alone_and_among_others():
    async with AsyncEngine() as engine:
        await engine.install_model(
            ModelConfig(model="pyhelp", name="m", dtype="float32", threads=1, max_num_seqs=33)
        )
        await engine.start_model("m")
        wanted = [(prompt, 12) for prompt, _ in requests(engine.model_info("m").vocab_size, 40)]
        styles = [
            {"temperature": 1.0, "seed": 11},
            {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 12},
            {"temperature": 1.3, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2, "seed": 13},
        ]
        for style in styles:
            alone = [(await answers(engine, [pair], **style))[0][0] for pair in wanted[:4]]
            together = (await answers(engine, wanted, **style))[0]
            assert together[:4] == alone
            assert len({tuple(tokens) for tokens in together}) > 16


async def test_logprobs_are_those_of_the_reference():
    model = pyhelp_reference()
    prompt = requests(model.config.vocab_size, 40)[5][0]
    async with AsyncEngine() as engine:
        await engine.install_model(ModelConfig(model="pyhelp", name="m", dtype="float32", threads=1))
        await engine.start_model("m")
        params = SamplingParams(
            temperature=0,
            max_new_tokens=4,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=3,
            prompt_logprobs=0,
        )
        handle, stream = await engine.start_request("m", prompt, params)
        await engine.sync_request("m", handle)
        output = stream.get()
    with torch.inference_mode():
        ids = torch.tensor([prompt + output.token_ids])
        table = model(ids).logits[0].log_softmax(-1)
    for step, token in enumerate(output.token_ids):
        row = table[len(prompt) - 1 + step]
        assert output.logprobs[step].logprob == pytest.approx(row[token].item(), abs=1e-3)
        best = row.topk(3)
        assert [t for t, _ in output.logprobs[step].top] == best.indices.tolist()
    given = [entry.logprob for entry in stream.prompt_logprobs[1:]]
    expected = [table[i, token].item() for i, token in enumerate(prompt[1:])]
    assert given == pytest.approx(expected, abs=1e-3)


LOGPROB_NOISE = {"none": 1e-4, "int8": 0.0}
"""Float32 products by torch depend in their last bits on the number of rows; quantised ones do not."""


@pytest.mark.parametrize("quantization", LOGPROB_NOISE)
async def test_logprobs_of_a_cached_prompt(quantization):
    if quantization != "none" and isinstance(levels(), Missing):
        pytest.skip("the native kernels are not built")
    prompt = [1 + 7 * i % 900 for i in range(61)]
    rows = []
    async with AsyncEngine() as engine:
        numbers = {"threads": 1, "max_length": 128, "num_blocks": 64, "max_num_seqs": 4}
        model = ModelConfig(
            model=str(PYHELP), name="m", dtype="float32", quantization=quantization, **numbers
        )
        await engine.install_model(model)
        await engine.start_model("m")
        for cached in (0, 48):
            asked = SamplingParams(temperature=0, ignore_eos=True, max_new_tokens=8, logprobs=True)
            _, stream = await engine.start_request("m", prompt, asked)
            await stream.await_finished()
            assert stream.num_cached_tokens == cached
            rows.append(stream.get())
    cold, warm = rows
    assert warm.token_ids == cold.token_ids
    noise = LOGPROB_NOISE[quantization]
    assert len(cold.logprobs) == 8
    expected = [entry.logprob for entry in cold.logprobs]
    assert [entry.logprob for entry in warm.logprobs] == pytest.approx(expected, abs=noise, rel=0)
