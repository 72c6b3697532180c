"""The native decoder gives the reference's own tokens and logits, for every family, however batched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from millstream.backends.machine.cpu_level import usable_features
from millstream.backends.torch.decoder.config import is_native, read_config
from millstream.backends.torch.kernels.interface import KVCacheDtype
from millstream.backends.torch.kernels.native_kernels import NativeKernels
from millstream.backends.torch.kernels.torch_kernels import TorchKernels
from millstream.backends.worker import Worker
from millstream.scheduler.batch import StepResult
from millstream.scheduler.sampling_params import SamplingParams

from ..checkpoints import FAMILIES, greedy, save_checkpoint
from ..driver import LEVELS, Driver, native_worker

PROMPTS = [
    [5, 17, 99, 4, 5, 6, 7, 8, 61, 62, 63, 64, 9],
    [33],
    [3 + (7 * i * i) % 120 for i in range(41)],
    [100, 90],
]
COUNT = 12


def assert_prompt_logprobs_equal(worker: Worker, model: PreTrainedModel, prompt: list[int]) -> None:
    """The worker's log-probabilities of `prompt`, computed in chunks, are the reference's."""
    driver = Driver(worker)
    driver.run([prompt], 1, params=SamplingParams(temperature=0, prompt_logprobs=2))
    found = [entry for result in driver.results for entry in result.prompt_logprobs.get(0, ())]
    with torch.inference_mode():
        reference = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    assert found[0] is None
    assert len(found) == len(prompt)
    for position, entry in enumerate(found[1:]):
        assert entry is not None
        assert entry.logprob == pytest.approx(reference[position, prompt[position + 1]].item(), abs=2e-4)
        best = reference[position].topk(2)
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.tolist(), abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_logits_equal_the_reference(family: str, tmp_path: Path) -> None:
    model = save_checkpoint(family, tmp_path)
    assert is_native(read_config(tmp_path))
    expected = [greedy(model, prompt, COUNT) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > COUNT, "the checkpoint says nothing"
    workers = [native_worker(tmp_path)]
    workers += [native_worker(tmp_path, block_size=16, kernels=NativeKernels(level)) for level in LEVELS]
    for worker in workers:
        assert Driver(worker).run(PROMPTS, COUNT) == expected
        assert Driver(worker, seed=1).run(PROMPTS[::-1], COUNT) == expected[::-1], "on blocks used before"
        assert_prompt_logprobs_equal(worker, model, PROMPTS[2])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_sequences_read_blocks_that_another_fills_in_the_same_step(
    family: str, block_size: int, tmp_path: Path
) -> None:
    model = save_checkpoint(family, tmp_path)
    common = PROMPTS[2][:32]
    prompts = [[*common, *PROMPTS[0]], [*common, 7], [*common, 8, 9]]
    worker = native_worker(tmp_path, block_size=block_size, num_blocks=256)
    found = Driver(worker).run(prompts, 4, shared_blocks=32 // block_size)
    assert found == [greedy(model, prompt, 4) for prompt in prompts]


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **values}


LONG_PROMPT = [3 + (5 * i * i) % 120 for i in range(48)]


@pytest.mark.parametrize("max_length", [24, 96])
def test_longrope_takes_its_factors_by_the_longest_sequence(max_length: int, tmp_path: Path) -> None:
    rope = _rope(
        "longrope",
        long_factor=[1.0, 2.0, 4.0, 8.0],
        short_factor=[1.0, 1.0, 1.5, 2.0],
        original_max_position_embeddings=24,
    )
    changes: dict[str, Any] = {"rope_parameters": rope, "original_max_position_embeddings": 24}
    model = save_checkpoint("phi3", tmp_path, sliding_window=None, **changes)
    prompt = LONG_PROMPT if max_length == 96 else LONG_PROMPT[:20]
    assert_prompt_logprobs_equal(native_worker(tmp_path, max_length=max_length), model, prompt)


def test_dynamic_rope_is_stretched_for_the_longest_sequence(tmp_path: Path) -> None:
    rope = _rope("dynamic", factor=2.0)
    model = save_checkpoint("llama", tmp_path, rope_parameters=rope, max_position_embeddings=24)
    assert_prompt_logprobs_equal(native_worker(tmp_path, max_length=len(LONG_PROMPT)), model, LONG_PROMPT)


def test_gemma3_stretches_only_the_layers_without_a_window(tmp_path: Path) -> None:
    ropes = {"full_attention": _rope("linear", factor=8.0), "sliding_attention": _rope("default")}
    model = save_checkpoint("gemma3", tmp_path, rope_parameters=ropes)
    assert_prompt_logprobs_equal(native_worker(tmp_path), model, LONG_PROMPT)


def test_smollm3_may_turn_all_layers(tmp_path: Path) -> None:
    model = save_checkpoint("smollm3", tmp_path, no_rope_layers=[1, 1, 1])
    assert_prompt_logprobs_equal(native_worker(tmp_path), model, PROMPTS[0])


@pytest.mark.parametrize("layers", [1, 5])
def test_any_number_of_layers(layers: int, tmp_path: Path) -> None:
    model = save_checkpoint("olmo2", tmp_path, num_hidden_layers=layers)
    assert_prompt_logprobs_equal(native_worker(tmp_path), model, PROMPTS[0])


def test_bfloat16_stays_near_the_reference(tmp_path: Path) -> None:
    model = save_checkpoint("qwen3", tmp_path)
    driver = Driver(native_worker(tmp_path, dtype=torch.bfloat16))
    driver.run([LONG_PROMPT], 1, params=SamplingParams(temperature=0, prompt_logprobs=0))
    found = _own_logprobs(driver.results)
    with torch.inference_mode():
        reference = model(torch.tensor([LONG_PROMPT])).logits[0].log_softmax(-1)
    expected = [reference[i, token].item() for i, token in enumerate(LONG_PROMPT[1:])]
    error = torch.tensor(found) - torch.tensor(expected)
    assert error.abs().mean() < 0.1


@pytest.mark.parametrize(
    ("kind", "most"), [(KVCacheDtype.INT8, 0.01), (KVCacheDtype.UINT4, 0.2)], ids=["int8", "uint4"]
)
def test_quantised_caches_stay_near_the_plain_one(kind: KVCacheDtype, most: float, tmp_path: Path) -> None:
    model = save_checkpoint("qwen2", tmp_path)
    with torch.inference_mode():
        reference = model(torch.tensor([LONG_PROMPT])).logits[0].log_softmax(-1)
    expected = torch.tensor([reference[i, token].item() for i, token in enumerate(LONG_PROMPT[1:])])
    for kernels in (TorchKernels(), *map(NativeKernels, LEVELS)):
        driver = Driver(native_worker(tmp_path, block_size=16, kernels=kernels, kind=kind))
        driver.run([LONG_PROMPT], 1, params=SamplingParams(temperature=0, prompt_logprobs=0))
        error = (torch.tensor(_own_logprobs(driver.results)) - expected).abs().mean()
        assert 0 < error < most


@pytest.mark.skipif(
    "amx_bf16" in usable_features(), reason="oneDNN's tiles do not give a row the same in every batch"
)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_bfloat16_tokens_are_the_same_alone_batched_and_in_chunks(
    family: str, level: str, tmp_path: Path
) -> None:
    save_checkpoint(family, tmp_path)
    worker = native_worker(
        tmp_path, block_size=16, num_blocks=128, dtype=torch.bfloat16, kernels=NativeKernels(level)
    )
    whole = Driver(worker, min_chunk=300, max_chunk=300)
    alone = [whole.run([prompt], COUNT)[0] for prompt in PROMPTS]
    assert whole.run(PROMPTS, COUNT) == alone
    for seed, chunk in enumerate((1, 5, 20)):
        assert Driver(worker, seed, max_chunk=chunk).run(PROMPTS, COUNT) == alone


def _own_logprobs(results: list[StepResult]) -> list[float]:
    entries = [entry for result in results for entry in result.prompt_logprobs.get(0, ())]
    return [entry.logprob for entry in entries if entry is not None]
