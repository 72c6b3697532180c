"""Runs the comparison: `python -m millstream.benchmarks.compare FOLDER`.

FOLDER holds the peers and the models; `python -m millstream.benchmarks.compare.environments FOLDER` makes
them. Every measurement has a process of its own. Within a run the engines take turns, so that a machine that
slows down slows them all; the table shows the medians over the runs. A peer that is missing or fails is a row
that says so. What an engine costs on top of another's kernels is seen on one file, at several levels of
concurrency: `--workloads levels --peers millstream-gguf-bf16 llamacpp-bf16`.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...api.cli.terminal import CommandParser, command_status
from ...backends.machine.hardware import inspect_hardware
from ...errors import InvalidArgument
from ..environment import write_report
from ..known_shapes import SHAPES
from ..options import require_at_least
from .environments import Layout
from .measuring import Measure, Measurer, with_best_settings
from .peers import PEERS, Peer, counterparts
from .results import Report, Row, WorkloadResult, compare_rows, make_row
from .runners.protocol import Outcome
from .table import level_lines, table_lines
from .workloads import LEVEL_WORKLOADS, WORKLOADS, Workload, make_workloads


def measure_workload(
    workload: Workload, peers: Sequence[Peer], scales: Mapping[str, float], runs: int, measure: Measure
) -> WorkloadResult:
    """All peers on one workload, `runs` times in turn; a peer that has failed is not tried again.

    Args:
        scales: name of a peer -> share of the requests that it is given; all of them where it is not named.
    """
    given = {peer.name: workload.scaled(scales.get(peer.name, 1.0)) for peer in peers}
    peers = [with_best_settings(peer, given[peer.name], measure) for peer in peers]
    outcomes: dict[str, list[Outcome]] = {peer.name: [] for peer in peers}
    for run in range(runs):
        for peer in peers:
            done = outcomes[peer.name]
            if done and done[-1].failure is not None:
                continue
            outcome = measure(peer, given[peer.name])
            done.append(outcome)
            took = outcome.failure or f"{outcome.wall_seconds:.1f} s"
            print(
                f"{workload.name}, run {run + 1} of {runs}, {peer.name}: {took}", file=sys.stderr, flush=True
            )
    rows: list[Row] = []
    for peer in peers:
        rows.append(make_row(peer, given[peer.name], len(workload.requests), outcomes[peer.name]))
    first_tokens = {
        name: [answer.token_ids[0] for answer in done[0].answers] for name, done in outcomes.items()
    }
    return WorkloadResult(
        name=workload.name,
        description=workload.description,
        rows=compare_rows(rows, counterparts(peers), first_tokens),
    )


def _parser() -> argparse.ArgumentParser:
    names = [peer.name for peer in PEERS]
    parser = CommandParser(
        prog="python -m millstream.benchmarks.compare",
        description="Serve the same requests with Millstream and its peers.",
    )
    add = parser.add_argument
    add("folder", type=Path, help="where the environments and models are")
    add("--shape", default="qwen2-0.5b", metavar="NAME", help="which model's numbers")
    add(
        "--workloads",
        nargs="+",
        choices=[*WORKLOADS, "levels", *LEVEL_WORKLOADS],
        default=list(WORKLOADS),
        metavar="NAME",
        help=f"what to ask: {', '.join(WORKLOADS)} (these by default), or levels: prompts alone and then "
        "outputs, for several numbers of requests at once",
    )
    add(
        "--peers",
        nargs="+",
        choices=names,
        default=names,
        metavar="NAME",
        help=f"whom to measure: {', '.join(names)}",
    )
    add("--runs", type=int, default=3, metavar="N", help="the medians of so many runs are reported")
    add("--threads", type=int, default=0, metavar="N", help="of every engine; 0 takes all physical cores")
    add(
        "--requests-scale",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="give every engine this share of each workload's requests",
    )
    add(
        "--peer-scale",
        type=_peer_scale,
        nargs="+",
        default=[],
        metavar="NAME=SHARE",
        help="give a slow peer this share instead; its row says how many requests it was given",
    )
    add("--timeout", type=float, default=900, metavar="SECONDS", help="of one measurement")
    add("--output-json", type=Path, metavar="FILE", help="write the figures and facts of the machine here")
    return parser


def _workloads(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield from LEVEL_WORKLOADS if name == "levels" else (name,)


def _peer_scale(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    if name not in {peer.name for peer in PEERS}:
        raise argparse.ArgumentTypeError(f"{name!r} is no peer")
    try:
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SHARE") from None


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_at_least(options, runs=1, threads=0)
    if not options.timeout > 0:
        raise InvalidArgument("--timeout", options.timeout, "seconds above 0")
    peers = [peer for peer in PEERS if peer.name in options.peers]
    scales = {peer.name: options.requests_scale for peer in peers} | dict(options.peer_scale)
    for name, share in scales.items():
        if not 0 < share <= 1:
            raise InvalidArgument(f"the scale of {name}", share, "above 0, at most 1")
    layout = Layout(options.folder, options.shape)
    threads = options.threads or inspect_hardware().physical_cores
    measure = Measurer(layout, threads=threads, timeout=options.timeout)
    workloads = make_workloads(SHAPES[options.shape].vocab_size)
    results: list[WorkloadResult] = []
    for name in _workloads(options.workloads):
        result = measure_workload(workloads[name], peers, scales, options.runs, measure)
        print("\n".join(table_lines(result)), end="\n\n", flush=True)
        results.append(result)
        if options.output_json is not None:
            command = ["python", "-m", str(__package__), *argv]
            report = Report(
                shape=options.shape, threads=threads, runs=options.runs, command=command, workloads=results
            )
            write_report(options.output_json, report)  # after each: a broken-off comparison is not lost
    print("\n".join(level_lines(results)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
