"""Measures the native kernels one by one: time, arithmetic per second, and how near to the memory's speed.

python -m millstream.benchmarks.kernels --shape qwen2-0.5b

Before each run a piece of memory larger than the caches is read from end to end. That empties the caches of
what the kernel reads, as all the rest of a model does, and times what the memory gives at that very moment:
`x read` is a kernel's time as a multiple of the time that reading its bytes once would take.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter

import msgspec

from ..api.cli.terminal import CommandParser, command_status, progress_line
from ..backends.machine.hardware import inspect_hardware
from ..backends.native import Missing, levels
from ..backends.worker import QUANTIZATIONS
from ..errors import InvalidArgument, NotSupported
from .architectures import Architecture
from .environment import write_report
from .known_shapes import SHAPES
from .options import require_at_least
from .random_checkpoint import write_checkpoint

GROUPS = ("attention", "linear", "rows", "sampling", "steps")
READ_BYTES = 128 << 20
"""Memory read before each run."""
LEAST_RUNS = 5


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one kernel at one size; medians over the runs."""

    level: str
    kernel: str
    size: str
    runs: int
    milliseconds: float
    spread: float
    """Half the distance between the quartiles of the runs' times, as a share of their median."""
    gb_per_second: float | None
    """Bytes that must be read at least, over time; None: the kernel is not about reading."""
    gflop_per_second: float | None
    read_gb_per_second: float
    """What reading memory gave between the runs."""
    times_read: float | None
    """Time as a multiple of that of reading the kernel's bytes once."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one run of the command."""

    shape: str
    threads: int
    figures: list[Figure]


class Case(msgspec.Struct, frozen=True):
    """One kernel on one input, ready to be run."""

    level: str
    kernel: str
    size: str
    run: Callable[[], object]
    read_bytes: int
    operations: int


def measure(
    case: Case, read_memory: Callable[[], None], read_bytes: int, seconds: float, clock: Callable[[], float]
) -> Figure:
    """Run a case for about so many seconds, LEAST_RUNS times at least, and read memory before each run."""
    case.run()
    times: list[float] = []
    reads: list[float] = []
    end = clock() + seconds
    while len(times) < LEAST_RUNS or clock() < end:
        begun = clock()
        read_memory()
        emptied = clock()
        case.run()
        times.append(clock() - emptied)
        reads.append(read_bytes / (emptied - begun) / 1e9)
    time, gb_read = median(times), median(reads)
    low, _, high = quantiles(times, n=4)
    gb = case.read_bytes / time / 1e9 if case.read_bytes else None
    return Figure(
        level=case.level,
        kernel=case.kernel,
        size=case.size,
        runs=len(times),
        milliseconds=time * 1e3,
        spread=(high - low) / 2 / time,
        gb_per_second=gb,
        gflop_per_second=case.operations / time / 1e9 if case.operations else None,
        read_gb_per_second=gb_read,
        times_read=gb_read / gb if gb else None,
    )


def _cases(
    options: argparse.Namespace, architecture: Architecture, folder: Path | None, best_level: str
) -> Iterator[Case]:
    """`folder` is None where no steps are asked for; they run at the best level by themselves."""
    from . import kernel_cases as make

    sizes = make.KernelSizes(
        vocab=architecture.vocab_size,
        hidden=architecture.hidden_size,
        wide=architecture.intermediate_size,
        heads=architecture.num_heads,
        kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
    )

    def of_level(level: str) -> Iterator[make.KernelCase]:
        if "attention" in options.groups:
            yield from make.attention_cases(level, sizes, options.batches, options.lengths)
        if "linear" in options.groups:
            yield from make.linear_cases(level, sizes, options.rows)
        if "rows" in options.groups:
            yield from make.row_cases(level, sizes, options.rows)
        if "sampling" in options.groups:
            yield from make.sampling_cases(level, sizes.vocab, options.sampling_rows)

    def steps() -> Iterator[make.KernelCase]:
        if folder is None:
            return
        for quantization in options.quantizations:
            yield from make.step_cases(folder, quantization, options.batches, options.prefills)

    for level in options.levels:
        for case in of_level(level):
            yield Case(level, case.kernel, case.size, case.run, case.read_bytes, case.operations)
    for case in steps():
        yield Case(best_level, case.kernel, case.size, case.run, case.read_bytes, case.operations)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.kernels",
        description="Measure the native kernels at the sizes of a model, and whole steps of it.",
    )
    add = parser.add_argument
    add(
        "--shape",
        choices=list(SHAPES),
        default="qwen2-0.5b",
        metavar="NAME",
        help="whose sizes to measure at",
    )
    add("--model", type=Path, metavar="FOLDER", help="a checkpoint of that shape; by default one is made")
    add("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS))
    add("--levels", nargs="+", metavar="LEVEL", help="of CPU features; all that this CPU has by default")
    add("--batches", type=int, nargs="+", default=[1, 8, 64], metavar="B", help="sequences of a decode step")
    add("--lengths", type=int, nargs="+", default=[512, 2048], metavar="L", help="tokens of their contexts")
    add("--rows", type=int, nargs="+", default=[1, 8, 64, 512], metavar="N", help="rows of other kernels")
    add("--sampling-rows", type=int, default=64, metavar="N")
    add("--prefills", type=int, nargs="+", default=[512], metavar="N", help="prompt tokens of model steps")
    add("--quantizations", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS), metavar="NAME")
    add("--threads", type=int, default=0, metavar="N", help="0: one per physical core")
    add("--seconds", type=float, default=0.5, metavar="S", help="to measure each case for")
    add("--output-json", type=Path, metavar="FILE", help="write the figures and facts of the machine here")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    found = levels()
    if isinstance(found, Missing):
        raise NotSupported(f"the native kernels are {found.reason}")
    options.levels = options.levels or list(found)
    for level in options.levels:
        if level not in found:
            raise InvalidArgument("--levels", level, ", ".join(found))
    require_at_least(options, batches=1, lengths=1, rows=1, sampling_rows=1, prefills=1, threads=0, seconds=0)
    threads = options.threads or inspect_hardware().physical_cores
    with _checkpoint(options) as folder:
        figures = _measure_all(options, folder, threads, found[0])
    if options.output_json is not None:
        write_report(options.output_json, Report(shape=options.shape, threads=threads, figures=figures))
    return 0


@contextmanager
def _checkpoint(options: argparse.Namespace) -> Iterator[Path | None]:
    """The model of whole steps, if they are asked for."""
    if "steps" not in options.groups:
        yield None
    elif options.model is not None:
        yield options.model
    else:
        with TemporaryDirectory() as folder:
            with progress_line(f"writing {options.shape}") as progress:
                write_checkpoint(Path(folder), SHAPES[options.shape], progress=progress)
            yield Path(folder)


def _measure_all(
    options: argparse.Namespace, folder: Path | None, threads: int, best_level: str
) -> list[Figure]:
    from .kernel_cases import MemoryReader, use_threads

    use_threads(threads)
    reader = MemoryReader(best_level, READ_BYTES)
    figures = []
    print(
        f"{'level':8} {'kernel':34} {'size':27}{'ms':>10} {'spread':>7}{'GB/s':>8}{'GFLOP/s':>9}"
        f"{'memory':>8}{'x read':>8}"
    )
    for case in _cases(options, SHAPES[options.shape], folder, best_level):
        figure = measure(case, reader, reader.size, options.seconds, perf_counter)
        figures.append(figure)
        print(
            f"{figure.level:8} {figure.kernel:34} {figure.size:27}{figure.milliseconds:10.3f} "
            f"{figure.spread:7.1%}{_number(figure.gb_per_second):>8}{_number(figure.gflop_per_second):>9}"
            f"{_number(figure.read_gb_per_second):>8}{_number(figure.times_read, 2):>8}",
            flush=True,
        )
    return figures


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
