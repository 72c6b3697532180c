"""Prepared decode steps give bit for bit what the same step gives computed anew, whatever came before it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from millstream.backends.torch import decode_program
from millstream.backends.torch.decode_program import DecodeProgram
from millstream.backends.torch.inputs import StepInputs
from millstream.backends.torch.kernels import KVCacheDtype
from millstream.backends.torch.native_kernels import NativeKernels
from millstream.scheduler.batch import TokenLogprobs
from millstream.scheduler.sampling_params import SamplingParams

from .checkpoints import FAMILIES, save_checkpoint
from .driver import LEVELS, Driver, native_worker

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built")
PROMPTS = [[5, 17, 99, 4, 5, 6, 7], [33], [3 + (7 * i * i) % 120 for i in range(30)], [100, 90], [8] * 16]
PARAMS = SamplingParams(temperature=0, logprobs=True, top_logprobs=3)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every prepared step that is run: its sequences, and the columns it provides for."""
    seen: list[tuple[int, int]] = []
    run = DecodeProgram.run

    def noting(self: DecodeProgram, inputs: StepInputs) -> torch.Tensor:
        seen.append((len(inputs.context_lengths), self.step.columns))
        return run(self, inputs)

    monkeypatch.setattr(DecodeProgram, "run", noting)
    return seen


def answers(
    folder: Path,
    *,
    level: str = "generic",
    dtype: torch.dtype = torch.float32,
    kind: KVCacheDtype = KVCacheDtype.AUTO,
    quantization: str = "int8",
    prompts: Sequence[Sequence[int]] = PROMPTS,
    count: int = 24,
) -> tuple[list[list[int]], list[dict[int, TokenLogprobs]]]:
    """Tokens and log-probabilities of two runs, the second one on blocks that were used before."""
    worker = native_worker(
        folder,
        num_blocks=48,
        block_size=16,
        dtype=dtype,
        kernels=NativeKernels(level),
        kind=kind,
        quantization=quantization,
    )
    driver = Driver(worker, min_chunk=30, max_chunk=30)
    tokens = driver.run(prompts, count, params=PARAMS) + driver.run(prompts[::-1], count, params=PARAMS)
    return tokens, [result.logprobs for result in driver.results]


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is prepared from now on."""
    monkeypatch.setattr(decode_program, "MOST_ROWS", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_steps_change_no_bit(
    family: str, sizes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(family, tmp_path)
    found = {level: answers(tmp_path, level=level) for level in LEVELS}
    assert {rows for rows, _ in sizes} >= {1, 2, 3, 4, 5}
    sizes.clear()
    anew(monkeypatch)
    assert {level: answers(tmp_path, level=level) for level in LEVELS} == found
    assert not sizes


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("kind", KVCacheDtype)
def test_in_bfloat16_and_over_quantised_caches(
    quantization: str,
    kind: KVCacheDtype,
    sizes: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_checkpoint("qwen2", tmp_path)
    found = answers(tmp_path, level=LEVELS[0], dtype=torch.bfloat16, kind=kind, quantization=quantization)
    assert sizes or quantization == "none"  # layers of 16 bits are native on some CPUs only
    anew(monkeypatch)
    again = answers(tmp_path, level=LEVELS[0], dtype=torch.bfloat16, kind=kind, quantization=quantization)
    assert again == found


def test_a_sequence_that_outgrows_its_program_gets_a_larger_one(
    sizes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint("llama", tmp_path)
    monkeypatch.setattr(decode_program, "LEAST_COLUMNS", 1)
    prompts = [[7, 8, 9]]
    found = answers(tmp_path, prompts=prompts, count=100)
    assert list(dict.fromkeys(sizes)) == [(1, 2), (1, 6), (1, 14)]
    anew(monkeypatch)
    assert answers(tmp_path, prompts=prompts, count=100) == found


def test_steps_that_want_more_than_tokens_are_computed_anew(
    sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    save_checkpoint("llama", tmp_path)
    worker = native_worker(tmp_path, block_size=16, kernels=NativeKernels(LEVELS[0]), quantization="int8")
    driver = Driver(worker, min_chunk=1, max_chunk=1)
    driver.run([[5, 6, 7, 8]], 1)
    assert len(driver.results) >= 4
    assert sizes == [(1, decode_program.LEAST_COLUMNS)], "tokens in the middle of a prompt want nothing"
