"""Programs of steps, kept or not, give bit for bit what the layers give one by one, whatever came before."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from millstream.backends.torch.decoder import decoder, step_program
from millstream.backends.torch.decoder.step_program import StepProgram
from millstream.backends.torch.kernels.interface import KVCacheDtype
from millstream.backends.torch.kernels.native_kernels import NativeKernels
from millstream.backends.torch.kernels.step_inputs import StepInputs
from millstream.scheduler.batch import Pooling, TokenLogprobs
from millstream.scheduler.sampling_params import SamplingParams

from ...embedder import embed
from ..checkpoints import FAMILIES, save_checkpoint
from ..driver import LEVELS, Driver, native_worker

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built")
PROMPTS = [[5, 17, 99, 4, 5, 6, 7], [33], [3 + (7 * i * i) % 120 for i in range(30)], [100, 90], [8] * 16]
PARAMS = SamplingParams(temperature=0, logprobs=True, top_logprobs=3, prompt_logprobs=1)
Answers = tuple[list[list[int]], list[dict[int, TokenLogprobs]], list[object]]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[StepProgram]:
    """The programs that were run, in their order."""
    seen: list[StepProgram] = []
    run = StepProgram.run

    def noting(self: StepProgram, inputs: StepInputs) -> torch.Tensor:
        seen.append(self)
        return run(self, inputs)

    monkeypatch.setattr(StepProgram, "run", noting)
    return seen


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on there are no "kept" programs, or none "at all"."""

    def change(which: str) -> None:
        if which == "kept":
            monkeypatch.setattr(step_program, "KEPT_ROWS", 0)
        else:
            monkeypatch.setattr(decoder, "are_native", lambda layers: False)

    return change


def kept(programs: list[StepProgram]) -> list[tuple[int, int]]:
    """Of each program that ran more than once: its sequences, and the columns it provides for."""
    runs: dict[int, list[StepProgram]] = {}
    for program in programs:
        runs.setdefault(id(program), []).append(program)
    return [(len(p[0].out), p[0].step.columns) for p in runs.values() if len(p) > 1]


def answers(
    folder: Path,
    *,
    level: str = "generic",
    dtype: torch.dtype = torch.float32,
    kind: KVCacheDtype = KVCacheDtype.AUTO,
    quantization: str = "int8",
    prompts: Sequence[Sequence[int]] = PROMPTS,
    count: int = 24,
) -> Answers:
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
    driver = Driver(worker, min_chunk=11, max_chunk=30)
    tokens = driver.run(prompts, count, params=PARAMS) + driver.run(prompts[::-1], count, params=PARAMS)
    results = driver.results
    return tokens, [result.logprobs for result in results], [result.prompt_logprobs for result in results]


@pytest.mark.parametrize("family", FAMILIES)
def test_programs_change_no_bit(
    family: str, programs: list[StepProgram], tmp_path: Path, without: Callable[[str], None]
) -> None:
    save_checkpoint(family, tmp_path)
    found = {level: answers(tmp_path, level=level) for level in LEVELS}
    assert {rows for rows, _ in kept(programs)} >= {1, 2, 3, 4, 5}
    programs.clear()
    without("kept")
    assert {level: answers(tmp_path, level=level) for level in LEVELS} == found
    assert programs
    assert not kept(programs)
    programs.clear()
    without("all")
    assert {level: answers(tmp_path, level=level) for level in LEVELS} == found
    assert not programs


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("kind", KVCacheDtype)
def test_in_bfloat16_and_over_quantised_caches(
    quantization: str,
    kind: KVCacheDtype,
    programs: list[StepProgram],
    tmp_path: Path,
    without: Callable[[str], None],
) -> None:
    save_checkpoint("qwen2", tmp_path)
    found = answers(tmp_path, level=LEVELS[0], dtype=torch.bfloat16, kind=kind, quantization=quantization)
    assert programs or quantization == "none"  # layers of 16 bits are native on some CPUs only
    without("all")
    again = answers(tmp_path, level=LEVELS[0], dtype=torch.bfloat16, kind=kind, quantization=quantization)
    assert again == found


def test_a_sequence_that_outgrows_its_program_gets_a_larger_one(
    programs: list[StepProgram],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[[str], None],
) -> None:
    save_checkpoint("llama", tmp_path)
    monkeypatch.setattr(step_program, "LEAST_COLUMNS", 1)
    prompts = [[7, 8, 9]]
    found = answers(tmp_path, prompts=prompts, count=100)
    assert kept(programs)[:3] == [(1, 2), (1, 6), (1, 14)]
    without("kept")
    assert answers(tmp_path, prompts=prompts, count=100) == found


def test_a_token_that_wants_nothing_takes_no_kept_program(
    programs: list[StepProgram], tmp_path: Path
) -> None:
    save_checkpoint("llama", tmp_path)
    worker = native_worker(tmp_path, block_size=16, kernels=NativeKernels(LEVELS[0]), quantization="int8")
    Driver(worker, min_chunk=1, max_chunk=1).run([[5, 6, 7, 8]], 2)
    assert [len(program.out) for program in programs] == [0, 0, 0, 1, 1]
    assert kept(programs) == [(1, step_program.LEAST_COLUMNS)]


@pytest.mark.parametrize("pooling", Pooling)
def test_hidden_states(
    pooling: Pooling, programs: list[StepProgram], tmp_path: Path, without: Callable[[str], None]
) -> None:
    save_checkpoint("llama", tmp_path)

    def states() -> list[list[float]]:
        kernels = NativeKernels(LEVELS[0])
        worker = native_worker(tmp_path, block_size=16, kernels=kernels, quantization="int8")
        return embed(worker, PROMPTS, pooling, 4).tolist()

    found = states()
    assert programs
    without("all")
    assert states() == found
