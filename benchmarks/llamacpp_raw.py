"""Measures what the engine costs on top of llama.cpp: the same GGUF file in a bare loop and in the engine.

python -m millstream.benchmarks.llamacpp_raw --model model.gguf --sequences 1 8 32 64

Every measurement has a process of its own, and the two kinds take turns, so that a machine that slows down
slows both. Before that the bare loop is tried with each of its settings, and goes on with the best.
With --shared-prefix requests that begin alike are served by the engine with the prefix cache and without.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

import msgspec

from ..api.cli.terminal import CommandParser, command_status
from ..backends.llamacpp.backend import LlamaCppBackend
from ..backends.registry import inspect_model
from ..backends.worker import Adapter, ModelInfo, Progress, Worker, WorkerConfig, WorkerSpec
from ..engine import Engine, FinishReason, ModelConfig, ResultQueue, SamplingParams
from ..errors import InvalidArgument, MillstreamError
from ..scheduler import Batch, StepResult
from .bare_llamacpp import BareSetting, Speeds, measure_bare
from .datasets import random_prompts
from .environment import write_report

Result = TypeVar("Result")

BARE_SETTINGS = (
    BareSetting(tokens_per_call=512, n_ubatch=512),
    BareSetting(tokens_per_call=2048, n_ubatch=512),
    BareSetting(tokens_per_call=2048, n_ubatch=2048),
)
_BLOCK_SIZE = 16
_TRIED_SEQUENCES = 8
"""At most so many sequences are served to find the best setting."""
_FIRST_ID = 16
"""Smallest token id of a prompt; special tokens often lie below."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one length, all there from the start."""

    path: Path
    vocab_size: int
    threads: int
    sequences: int
    input_len: int
    output_len: int
    shared_len: int = 0
    """Tokens at the start of all prompts that are the same."""

    def prompts(self, seed: int = 0) -> list[list[int]]:
        """Prompts that are the same in every process."""
        vocab = range(_FIRST_ID, self.vocab_size)
        drawn = random_prompts(
            vocab,
            self.sequences,
            input_len=self.input_len - self.shared_len,
            output_len=self.output_len,
            prefix_len=self.shared_len,
            seed=seed,
        )
        return [prompt.token_ids for prompt in drawn]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second of both with so many sequences; medians over the runs."""

    sequences: int
    bare_prefill: float
    engine_prefill: float
    prefill_ratio: float
    bare_decode: float
    engine_decode: float
    decode_ratio: float
    bare_setting: BareSetting
    bare_runs: list[Speeds]
    engine_runs: list[Speeds]


class SharedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that begin alike; seconds until all have ended, medians over the runs."""

    sequences: int
    shared_tokens: int
    own_tokens: int
    output_tokens: int
    seconds_without_cache: float
    seconds_with_cache: float
    ratio: float
    """How many times faster the cache makes it."""
    runs_without_cache: list[float]
    runs_with_cache: list[float]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured."""

    model: str
    threads: int
    input_len: int
    output_len: int
    levels: list[Level]
    shared_prefix: SharedPrefix | None


class Mark(msgspec.Struct, frozen=True):
    """One step as the worker saw it; the moment it came, in seconds."""

    num_chunks: int
    num_tokens: int
    moment: float


class MarkingWorker:
    """Another worker, and the moments at which its steps came."""

    def __init__(self, worker: Worker) -> None:
        self.marks: list[Mark] = []
        self._worker = worker

    @property
    def spec(self) -> WorkerSpec:
        """See `Worker`."""
        return self._worker.spec

    def execute(self, batch: Batch) -> StepResult:
        """See `Worker`."""
        self.marks.append(Mark(len(batch.chunks), batch.num_tokens, perf_counter()))
        return self._worker.execute(batch)

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """See `Worker`."""
        self._worker.load_adapter(adapter, max_rank)

    def unload_adapter(self, name: str) -> None:
        """See `Worker`."""
        self._worker.unload_adapter(name)

    def close(self) -> None:
        """See `Worker`."""
        self._worker.close()


class MarkingBackend(LlamaCppBackend):
    """Loads workers whose steps can be looked at afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[MarkingWorker] = []

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> MarkingWorker:
        """See `Backend`."""
        worker = MarkingWorker(super().load(info, config, progress))
        self.workers.append(worker)
        return worker


def measure_engine(case: Case) -> Speeds:
    """Prefill by requests of one output token, decode by the steps in which every request gets one.

    Raises:
        MillstreamError: a request was not served to its end, or no step had all requests in it.
    """
    backend = MarkingBackend()
    with Engine() as engine:
        name = _start(engine, case, backend, cache=False)
        started = perf_counter()
        _serve(engine, name, case.prompts(), 1)
        prefilled = perf_counter()
        marks = backend.workers[0].marks
        marks.clear()
        _serve(engine, name, case.prompts(seed=1), case.output_len)
    steady = [
        (mark, following)
        for mark, following in pairwise(marks)
        if mark.num_chunks == mark.num_tokens == case.sequences
        and following.num_chunks == following.num_tokens == case.sequences
    ]
    if not steady:
        raise MillstreamError(
            f"no two steps had {case.sequences} requests in them and nothing else: take a longer --output-len"
        )
    seconds = sum(following.moment - mark.moment for mark, following in steady)
    return Speeds(
        prefill=case.sequences * case.input_len / (prefilled - started),
        decode=case.sequences * len(steady) / seconds,
    )


def measure_shared_prefix(case: Case, cache: bool) -> float:
    """Seconds from the first request to the end of the last."""
    with Engine() as engine:
        name = _start(engine, case, MarkingBackend(), cache=cache)
        started = perf_counter()
        _serve(engine, name, case.prompts(), case.output_len)
        return perf_counter() - started


def _start(engine: Engine, case: Case, backend: MarkingBackend, *, cache: bool) -> str:
    length = case.input_len + case.output_len
    config = ModelConfig(
        model=str(case.path),
        backend=backend,
        threads=case.threads,
        max_length=length,
        max_num_seqs=case.sequences,
        block_size=_BLOCK_SIZE,
        num_blocks=case.sequences * -(-length // _BLOCK_SIZE),
        enable_prefix_cache=cache,
    )
    engine.install_model(config)
    engine.start_model(config.installed_name)
    return config.installed_name


def _serve(engine: Engine, name: str, prompts: Sequence[Sequence[int]], output_len: int) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=output_len, ignore_eos=True)
    queues: list[ResultQueue] = []
    for prompt in prompts:
        _, queue = engine.start_request_ids(name, list(prompt), params)
        queues.append(queue)
    for queue in queues:
        queue.wait_finished()
        if queue.finish_reason is not FinishReason.LENGTH:
            raise MillstreamError(f"a request was not served: {queue.error or queue.finish_reason}")


def measure_level(case: Case, runs: int) -> Level:
    """Both, `runs` times in turn."""
    setting = best_setting(case)
    bare: list[Speeds] = []
    engine: list[Speeds] = []
    for _ in range(runs):
        bare.append(
            _in_process(measure_bare, case.path, case.prompts(), case.output_len, case.threads, setting)
        )
        engine.append(_in_process(measure_engine, case))
    prefill = [median(run.prefill for run in both) for both in (bare, engine)]
    decode = [median(run.decode for run in both) for both in (bare, engine)]
    return Level(
        sequences=case.sequences,
        bare_prefill=prefill[0],
        engine_prefill=prefill[1],
        prefill_ratio=prefill[1] / prefill[0],
        bare_decode=decode[0],
        engine_decode=decode[1],
        decode_ratio=decode[1] / decode[0],
        bare_setting=setting,
        bare_runs=bare,
        engine_runs=engine,
    )


def best_setting(case: Case) -> BareSetting:
    """The bare loop's setting that serves a few of the sequences in the shortest time."""
    prompts = case.prompts()[:_TRIED_SEQUENCES]
    tokens = len(prompts) * case.input_len, len(prompts) * (case.output_len - 1)

    def seconds(setting: BareSetting) -> float:
        speeds = _in_process(measure_bare, case.path, prompts, case.output_len, case.threads, setting)
        return tokens[0] / speeds.prefill + tokens[1] / speeds.decode

    return min(BARE_SETTINGS, key=seconds)


def measure_cache(case: Case, runs: int) -> SharedPrefix:
    """The engine without and with the prefix cache, `runs` times in turn."""
    without: list[float] = []
    with_cache: list[float] = []
    for _ in range(runs):
        without.append(_in_process(measure_shared_prefix, case, False))
        with_cache.append(_in_process(measure_shared_prefix, case, True))
    return SharedPrefix(
        sequences=case.sequences,
        shared_tokens=case.shared_len,
        own_tokens=case.input_len - case.shared_len,
        output_tokens=case.output_len,
        seconds_without_cache=median(without),
        seconds_with_cache=median(with_cache),
        ratio=median(without) / median(with_cache),
        runs_without_cache=without,
        runs_with_cache=with_cache,
    )


def _in_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, which nothing before has warmed or filled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise MillstreamError(
                f"the process of {function.__name__} was killed, or llama.cpp aborted it"
            ) from error


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.llamacpp_raw",
        description="Compare the engine with a bare llama_decode loop on one GGUF file.",
    )
    add = parser.add_argument
    add("--model", required=True, help=".gguf file, folder, hub id or bundled name")
    add("--threads", type=int, default=0, metavar="N", help="of both; 0 takes all physical cores")
    add("--sequences", type=int, nargs="*", default=[1, 8, 32, 64], metavar="N", help="levels to measure")
    add("--input-len", type=int, default=512, metavar="N", help="prompt tokens of each request")
    add("--output-len", type=int, default=32, metavar="N", help="tokens to generate for each request")
    add("--runs", type=int, default=3, metavar="N", help="the medians of so many runs are reported")
    add("--shared-prefix", action="store_true", help="measure 64 requests that begin alike, too")
    add("--shared-len", type=int, default=448, metavar="N", help="tokens that those begin with")
    add("--output-json", type=Path, metavar="FILE", help="write the figures and facts of the machine here")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    _check(options)
    backend, info = inspect_model(options.model, "llamacpp")
    _, _, threads = backend.resolve(info, device="cpu", dtype="auto", threads=options.threads)
    if options.input_len + options.output_len > info.max_length:
        raise InvalidArgument(
            "--input-len",
            options.input_len,
            f"with --output-len at most {info.max_length}, the model's context",
        )

    def case(sequences: int, shared_len: int = 0) -> Case:
        return Case(
            path=info.path,
            vocab_size=info.vocab_size,
            threads=threads,
            sequences=sequences,
            input_len=options.input_len,
            output_len=options.output_len,
            shared_len=shared_len,
        )

    levels = []
    if options.sequences:
        print(f"{'sequences':>9}{'':>4}{'prefill, tokens/s':^26}{'':>4}{'decode, tokens/s':^26}")
        print(f"{'':>13}{'bare':>9}{'engine':>9}{'ratio':>8}{'':>4}{'bare':>9}{'engine':>9}{'ratio':>8}")
    for sequences in options.sequences:
        level = measure_level(case(sequences), options.runs)
        levels.append(level)
        print(
            f"{sequences:9}{'':>4}{level.bare_prefill:9.1f}{level.engine_prefill:9.1f}{level.prefill_ratio:8.3f}"
            f"{'':>4}{level.bare_decode:9.1f}{level.engine_decode:9.1f}{level.decode_ratio:8.3f}",
            flush=True,
        )
    shared = None
    if options.shared_prefix:
        shared = measure_cache(case(64, options.shared_len), options.runs)
        print(
            f"64 requests of {shared.shared_tokens} shared and {shared.own_tokens} own tokens: "
            f"{shared.seconds_without_cache:.1f} s without the prefix cache, "
            f"{shared.seconds_with_cache:.1f} s with it, {shared.ratio:.2f} times faster"
        )
    if options.output_json is not None:
        write_report(
            options.output_json,
            Report(
                model=info.name,
                threads=threads,
                input_len=options.input_len,
                output_len=options.output_len,
                levels=levels,
                shared_prefix=shared,
            ),
        )
    return 0


def _check(options: argparse.Namespace) -> None:
    for name, least, values in (
        ("--runs", 1, [options.runs]),
        ("--sequences", 1, options.sequences or [1]),
        ("--input-len", 1, [options.input_len]),
        ("--output-len", 3, [options.output_len]),
    ):
        if min(values) < least:
            raise InvalidArgument(name, min(values), f"{least} or more")
    if options.shared_prefix and not 0 < options.shared_len < options.input_len:
        raise InvalidArgument("--shared-len", options.shared_len, f"1 to {options.input_len - 1}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
