"""Measures what a model's requests take beside processes that compute, against their fair share of the cores.

python -m millstream.benchmarks.busy --model pyhelp --num-threads 1 2 0 --busy 4 8

Of C cores that B busy processes and T threads share alike, each has C / (B + T): what takes a second alone
then takes (B + T) / C. Each number of threads is measured by itself, with an engine of its own; 0 stands for
those that are found to be fastest. The busy processes are started and ended here, in this session of the
system's, so that its scheduler counts them with the engine. The machine has to be quiet otherwise.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
import psutil

from ..api.cli.options import add_engine_flags, model_config
from ..api.cli.terminal import CommandParser, command_status, loading_line
from ..backends.machine.hardware import physical_cores
from ..engine import Engine
from .datasets import plain_token_ids, random_prompts
from .environment import write_report
from .options import require_at_least
from .throughput import report, serve
from .workload import Workload

_PROGRAM = "print(flush=True)\nwhile True: pass"


class BusyFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One workload beside some busy processes."""

    busy: int
    seconds: float
    ratio: float
    """Of the seconds to those on the quiet machine."""
    fair_ratio: float
    """What it would be, were the cores shared alike."""
    cost: float
    """`ratio` over `fair_ratio`."""
    share_cost: float
    """CPU time that a busy process had meanwhile, over the seconds on the quiet machine: 1 where a share like
    its own is enough for each of the model's threads, however many others there are."""


class ThreadsFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One number of threads."""

    threads: int
    """As it was asked for; 0: chosen by measurement."""
    quiet_seconds: float
    step_threads: dict[int, int]
    """Most tokens of a step -> threads that the last such step took on the quiet machine."""
    beside: list[BusyFigure]

    def lines(self) -> list[str]:
        """For people."""
        chosen = ", ".join(f"{threads} up to {tokens}" for tokens, threads in self.step_threads.items())
        return [
            f"threads {self.threads or 'auto'}: {self.quiet_seconds:.3f} s quiet"
            + (f" (by tokens in a step: {chosen})" if chosen else ""),
            *(
                f"  beside {one.busy} busy processes: {one.seconds:.3f} s, {one.ratio:.2f} times as long; "
                f"fair: {one.fair_ratio:.2f}; cost {one.cost:.2f}, by shares of CPU {one.share_cost:.2f}"
                for one in self.beside
            ),
        ]


class BusyReport(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of threads."""

    cores: int
    figures: list[ThreadsFigure]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.busy",
        description="Measure a model on a quiet machine and beside busy processes.",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id or bundled name")
    add(
        "--num-threads",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="numbers of threads, each measured by itself; 0: as many as are fastest",
    )
    add("--busy", type=int, nargs="+", default=[4, 8], metavar="N", help="numbers of busy processes")
    add("--input-len", type=int, default=400, metavar="N", help="prompt tokens")
    add("--output-len", type=int, default=128, metavar="N", help="tokens to generate")
    add("--batch-size", type=int, default=2, metavar="N", help="requests at once")
    add("--runs", type=int, default=3, metavar="N", help="runs of each; the median counts")
    add("--output-json", type=Path, metavar="FILE", help="write the figures and facts of the machine here")
    add_engine_flags(parser)
    return parser


@contextmanager
def busy_processes(count: int) -> Iterator[list[psutil.Process]]:
    """So many processes that compute, from the time when all of them do to the end of the block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE))
        for process in started:
            if process.stdout is not None:
                process.stdout.readline()
        yield [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def measure(options: argparse.Namespace, threads: int, cores: int) -> ThreadsFigure:
    """One number of threads, alone and beside all numbers of busy processes."""
    config = msgspec.structs.replace(model_config(options, enable_prefix_cache=False), threads=threads)
    name = config.installed_name
    with Engine() as engine:
        info = engine.install_model(config)
        prompts = random_prompts(
            plain_token_ids(engine.tokenizer(name), info.vocab_size),
            options.batch_size,
            input_len=options.input_len,
            output_len=options.output_len,
        )
        workload = Workload(prompts=prompts, detokenize=False)
        with loading_line(name) as progress:
            engine.start_model(name, progress=progress)

        def seconds() -> float:
            outcome = serve(engine, name, workload)
            report(workload, outcome, {})  # refuses to measure requests that failed
            return outcome.seconds

        seconds()
        quiet = median(seconds() for _ in range(options.runs))
        step_threads = engine.stats(name).step_threads
        most = max(step_threads.values(), default=1)
        beside = []
        for count in options.busy:
            with busy_processes(count) as processes:
                before = _cpu_seconds(processes)
                runs = [seconds() for _ in range(options.runs)]
                had = (_cpu_seconds(processes) - before) / (count * options.runs)
            ratio, fair = median(runs) / quiet, max(1.0, (count + most) / cores)
            beside.append(
                BusyFigure(
                    busy=count,
                    seconds=median(runs),
                    ratio=ratio,
                    fair_ratio=fair,
                    cost=ratio / fair,
                    share_cost=had / quiet,
                )
            )
    return ThreadsFigure(threads=threads, quiet_seconds=quiet, step_threads=step_threads, beside=beside)


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_at_least(options, num_threads=0, busy=1, input_len=1, output_len=1, batch_size=1, runs=1)
    cores = physical_cores()
    figures = []
    for threads in options.num_threads:
        figures.append(measure(options, threads, cores))
        print("\n".join(figures[-1].lines()), flush=True)
    if options.output_json is not None:
        write_report(options.output_json, BusyReport(cores=cores, figures=figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
