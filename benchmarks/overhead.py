"""Measures the engine itself: what a step costs beyond the worker, per running request.

python -m millstream.benchmarks.overhead --running 1 64 256 1024

Everything is real but the model: scheduler, block tables, detokeniser, output streams, and one coroutine per
request that reads its stream. The worker answers at once with the tokens of a text. The process is bound to
one core, so the time of the engine's thread and of the worker's thread add up.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from cProfile import Profile
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec

from ..api.cli.running import run_async
from ..api.cli.terminal import CommandParser, command_status
from ..backends.bundled import PYHELP
from ..backends.text.tokenizer import HFTokenizer
from ..engine import AsyncEngine, ModelConfig, OutputStream, RequestOptions
from ..errors import MillstreamError
from ..scheduler import SamplingParams
from .cores import allowed_cores, bound_to
from .environment import write_report
from .options import require_at_least
from .replay import Mark, ReplayBackend, sample_text

_PROMPT_TOKENS = 64
_BLOCK_SIZE = 16
_MIN_STEPS = 100
_REQUEST_STEPS = 20_000
"""Request-steps measured in a run, unless that is fewer than _MIN_STEPS steps."""


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one request in one step, in microseconds, with so many requests running."""

    running: int
    steps: int
    engine_us: float
    """Wall time without the worker's own: the figure that counts. Median over the runs."""
    execute_us: float
    """The fake worker's own CPU time."""
    cpu_us: float
    """CPU time of the process, the worker's included; it does not grow when the machine is shared."""
    engine_us_of_runs: list[float]
    tokens_per_second: float
    """What an infinitely fast worker would reach."""


class Run(msgspec.Struct, frozen=True):
    """Sums over the steps of one run in which every request was running; in seconds."""

    steps: int
    wall: float
    cpu: float
    execute: float


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How to measure."""

    runs: int = 5
    readers: bool = True
    """One coroutine per request reads its stream as tokens come; else streams are left alone to the end."""
    detokenize: bool = True
    one_core: bool = True
    max_steps: int = 2_000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All levels, measured with the same settings."""

    setting: Setting
    levels: list[Level]


def measure(running: int, setting: Setting) -> Level:
    """Medians over several runs with `running` requests at once."""
    tokenizer = HFTokenizer.from_folder(PYHELP)
    text = sample_text(tokenizer)
    steps = min(max(_REQUEST_STEPS // running, _MIN_STEPS), setting.max_steps)
    runs: list[Run] = []
    for _ in range(setting.runs):
        marks: list[Mark] = []
        backend = ReplayBackend(tokenizer, text, vocab_size=max(text) + 1, marks=marks)
        run_async(_serve(backend, running, steps, setting))
        runs.append(steady_part(marks, running))

    def micros(seconds: float, run: Run) -> float:
        return seconds * 1e6 / (run.steps * running)

    engine = [micros(run.wall - run.execute, run) for run in runs]
    return Level(
        running=running,
        steps=min(run.steps for run in runs),
        engine_us=median(engine),
        execute_us=median(micros(run.execute, run) for run in runs),
        cpu_us=median(micros(run.cpu, run) for run in runs),
        engine_us_of_runs=engine,
        tokens_per_second=1e6 / median(engine),
    )


def steady_part(marks: Sequence[Mark], running: int) -> Run:
    """What passed between successive steps in which every request, and nothing else, got one token."""
    steps, wall, cpu, execute = 0, 0.0, 0.0, 0.0
    for mark, following in pairwise(marks):
        if all(step.num_chunks == step.num_tokens == running for step in (mark, following)):
            steps += 1
            wall += following.wall - mark.wall
            cpu += following.cpu - mark.cpu
            execute += mark.execute_seconds
    if steps == 0:
        raise MillstreamError(f"no step had {running} requests in it and nothing else")
    return Run(steps, wall, cpu, execute)


async def _serve(backend: ReplayBackend, running: int, steps: int, setting: Setting) -> None:
    """One engine with `running` requests of `steps` tokens each, to their end."""
    length = _PROMPT_TOKENS + steps
    config = ModelConfig(
        model="replay",
        backend=backend,
        max_length=length,
        max_num_seqs=running,
        max_num_batched_tokens=running * (_PROMPT_TOKENS + 1),
        block_size=_BLOCK_SIZE,
        num_blocks=running * (-(-length // _BLOCK_SIZE) + 1),
        warmup=False,
    )
    params = SamplingParams(temperature=0, max_new_tokens=steps, ignore_eos=True)
    options = RequestOptions(detokenize=setting.detokenize)
    async with AsyncEngine() as engine:
        await engine.install_model(config)
        await engine.start_model("replay")
        streams = []
        for number in range(running):
            prompt = [(number * 7 + place) % backend.vocab_size for place in range(_PROMPT_TOKENS)]
            _, stream = await engine.start_request("replay", prompt, params, options)
            streams.append(stream)
        read = _read if setting.readers else OutputStream.await_finished
        await asyncio.gather(*(read(stream) for stream in streams))


async def _read(stream: OutputStream) -> None:
    async for _ in stream:
        pass


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.overhead",
        description="Measure what a step of the engine costs beyond the worker, per running request.",
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256, 1024], metavar="N")
    parser.add_argument("--runs", type=int, default=5, help="the medians of so many runs are reported")
    parser.add_argument("--max-steps", type=int, default=2_000, metavar="N", help="longest run")
    parser.add_argument("--no-readers", dest="readers", action="store_false", help="nobody reads the streams")
    parser.add_argument("--disable-detokenize", dest="detokenize", action="store_false")
    parser.add_argument("--all-cores", dest="one_core", action="store_false", help="do not bind to one core")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a cProfile of the event loop")
    parser.add_argument("--output-json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_at_least(options, runs=1, running=1, max_steps=2)
    setting = Setting(
        runs=options.runs,
        readers=options.readers,
        detokenize=options.detokenize,
        one_core=options.one_core,
        max_steps=options.max_steps,
    )
    core = allowed_cores()[-1] if setting.one_core else None
    with bound_to(core), _profile(options.profile):
        levels = []
        print(f"{'running':>8}{'engine us':>12}{'execute us':>12}{'cpu us':>10}{'tokens/s':>12}")
        for running in options.running:
            level = measure(running, setting)
            levels.append(level)
            print(
                f"{level.running:8}{level.engine_us:12.2f}{level.execute_us:12.2f}{level.cpu_us:10.2f}"
                f"{level.tokens_per_second:12.0f}",
                flush=True,
            )
    if options.output_json is not None:
        write_report(options.output_json, Report(setting=setting, levels=levels))
    return 0


@contextmanager
def _profile(path: Path | None) -> Iterator[None]:
    """Profile this thread, the event loop's, into a file for `python -m pstats`."""
    if path is None:
        yield
        return
    profiler = Profile()
    profiler.enable()
    try:
        yield
    finally:
        profiler.disable()
        profiler.dump_stats(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
