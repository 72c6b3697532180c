"""Measures the server itself: what streams cost it on one core, beyond the model.

python -m millstream.benchmarks.serve_overhead --streams 256 --step-ms 8

The real application runs over a worker that only takes its time (benchmarks/serve/application.py), bound to
one core; the load generator of benchmarks/serve drives it from another one. Figures are those of the steady
part, while every stream was running: neither the intake of all requests at once nor their ends are in them.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING

import msgspec
import numpy as np
import psutil

from ..api.cli.running import run_async
from ..api.cli.terminal import CommandParser, command_status
from ..errors import MillstreamError
from .cores import allowed_cores, bound_to
from .environment import write_report
from .options import require_at_least
from .serve.flags import make_parser, require_client
from .serve.outcome import Outcome, State
from .serve.plan import make_plan

if TYPE_CHECKING:  # it needs aiohttp, which is an extra
    from .serve.measurement import Measurement

ROUTES = ("openai", "openai-chat")
_HEADER = "route         tokens/s    mean  p99 ms  steps  server  us/token  client  ttft ms"
_PROMPT_TOKENS = 32
_CPU_INTERVAL = 0.05


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one route; times in milliseconds, of the steady part unless said otherwise."""

    route: str
    streams: int
    step_ms: float
    """What the worker takes for a step."""
    tokens_per_second: float
    steady_seconds: float
    mean_itl_ms: float
    """Inter-token delay: from one arrival of a stream to the next."""
    p50_itl_ms: float
    p99_itl_ms: float
    max_itl_ms: float
    p99_in_steps: float
    mean_ttft_ms: float
    """Of the whole run, in which all requests are sent at once."""
    whole_tokens_per_second: float
    """From the first request sent to the last one ended."""
    whole_p99_itl_ms: float
    server_cpu: float
    """Share of one core."""
    server_us_per_token: float
    """CPU time of the server's process."""
    client_cpu: float
    """Share of one core, of the whole run."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, in their order."""

    levels: list[Level]


class CpuClock(threading.Thread):
    """Reads a process's CPU time many times a second, so that one can ask later what it was."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._ended = threading.Event()
        self._moments: list[float] = []
        self._seconds: list[float] = []

    def run(self) -> None:
        """Until `stop`."""
        while True:
            times = self._process.cpu_times()
            self._moments.append(perf_counter())
            self._seconds.append(times.user + times.system)
            if self._ended.wait(_CPU_INTERVAL):
                return

    def stop(self) -> None:
        """Take the last reading."""
        self._ended.set()
        self.join()

    def at(self, moment: float) -> float:
        """CPU seconds at a moment of `perf_counter`, interpolated."""
        return float(np.interp(moment, self._moments, self._seconds))


class Server:
    """The application as a process of its own, bound to one core."""

    def __init__(self, core: int | None, arguments: Sequence[str]) -> None:
        """Start it and wait until it is ready.

        Raises:
            MillstreamError: it has ended instead; says what it said.
        """
        command = [sys.executable, "-m", "millstream.benchmarks.serve.application", *arguments]
        with bound_to(core):  # a process inherits the binding of the one that starts it
            self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self._log: IO[str] = self._process.stderr
        self.port = 0
        said: list[str] = []
        for line in self._log:
            said.append(line)
            entry = json.loads(line) if line.startswith("{") else {}
            self.port = entry.get("port", self.port)
            if entry.get("message") == "ready":
                break
        else:
            raise MillstreamError(f"the server has not started: {' '.join(said).strip()}")
        # A pipe that nobody reads would hold the server up once it is full.
        self._reader = threading.Thread(target=self._log.read, daemon=True)
        self._reader.start()
        self.process = psutil.Process(self._process.pid)

    @contextmanager
    def cpu_clock(self) -> Iterator["CpuClock"]:
        """Keep a record of its CPU time."""
        clock = CpuClock(self.process)
        clock.start()
        try:
            yield clock
        finally:
            clock.stop()

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)
        self._reader.join()
        self._log.close()


def measure_route(server: Server, route: str, *, streams: int, tokens: int, step_ms: float) -> Level:
    """One run: `streams` requests of `tokens` tokens at once.

    Raises:
        MillstreamError: a request failed, or no moment saw all streams running.
    """
    arguments = [
        *("--backend", route, "--port", str(server.port), "--num-prompts", str(streams), "--disable-tqdm"),
        *("--tokenizer", "pyhelp", "--random-input-len", str(_PROMPT_TOKENS)),
        *("--random-output-len", str(tokens), "--num-warmups", "2"),
    ]
    plan = make_plan(make_parser().parse_args(arguments))
    with server.cpu_clock() as clock:
        from .serve.measurement import measure

        measured = run_async(measure(plan))
    for outcome in measured.outcomes:
        if outcome.state is not State.SUCCEEDED:
            raise MillstreamError(f"a request has {outcome.state.value}: {outcome.error}")
    return _level(route, measured, step_ms=step_ms, clock=clock)


def _level(route: str, measured: "Measurement", *, step_ms: float, clock: CpuClock) -> Level:
    outcomes, figures = measured.outcomes, measured.figures
    begin, end = steady_part(outcomes)
    arrivals = [np.asarray(outcome.arrivals) for outcome in outcomes]
    inside = [times[(times >= begin) & (times <= end)] for times in arrivals]
    gaps = np.concatenate([np.diff(times) for times in inside]) * 1000
    all_gaps = np.concatenate([np.diff(times) for times in arrivals]) * 1000
    # An event may carry more than one token, and a token may have no text of its own.
    per_event = figures.total_output_tokens / sum(map(len, arrivals))
    tokens = sum(map(len, inside)) * per_event
    cpu = clock.at(end) - clock.at(begin)
    ttft = np.asarray([outcome.ttft for outcome in outcomes if outcome.ttft is not None])
    p99 = float(np.percentile(gaps, 99))
    return Level(
        route=route,
        streams=len(outcomes),
        step_ms=step_ms,
        tokens_per_second=tokens / (end - begin),
        steady_seconds=end - begin,
        mean_itl_ms=float(gaps.mean()),
        p50_itl_ms=float(np.percentile(gaps, 50)),
        p99_itl_ms=p99,
        max_itl_ms=float(gaps.max()),
        p99_in_steps=p99 / step_ms if step_ms else float("nan"),
        mean_ttft_ms=float(ttft.mean()) * 1000,
        whole_tokens_per_second=figures.output_throughput,
        whole_p99_itl_ms=float(np.percentile(all_gaps, 99)),
        server_cpu=cpu / (end - begin),
        server_us_per_token=cpu * 1e6 / tokens,
        client_cpu=figures.client_cpu_share,
    )


def steady_part(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """From the last stream's first token to the first stream's last token.

    Raises:
        MillstreamError: some stream had ended before another one began.
    """
    begin = max(outcome.arrivals[0] for outcome in outcomes)
    end = min(outcome.arrivals[-1] for outcome in outcomes)
    if end <= begin:
        raise MillstreamError("at no time were all streams running; ask for more --tokens")
    return begin, end


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.serve_overhead",
        description="Measure what streams cost the server over a worker that only takes its time.",
    )
    add = parser.add_argument
    add("--streams", type=int, default=256, metavar="N", help="requests at the same time")
    add("--tokens", type=int, default=600, metavar="N", help="of each stream")
    add("--step-ms", type=float, default=8.0, help="time of the worker's step; 0 takes none")
    add(
        "--routes", nargs="+", choices=ROUTES, default=list(ROUTES), metavar="ROUTE", help=" or ".join(ROUTES)
    )
    add("--runs", type=int, default=1, metavar="N", help="of each route")
    add("--all-cores", dest="bound", action="store_false", help="do not bind server and client to cores")
    add("--output-json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_client()
    require_at_least(options, streams=1, tokens=3, runs=1, step_ms=0)
    client_core, *_, server_core = allowed_cores(2) if options.bound else (None, None)
    server = Server(
        server_core,
        [
            *("--step-ms", str(options.step_ms), "--max-num-seqs", str(options.streams)),
            *("--max-length", str(options.tokens + 2 * _PROMPT_TOKENS + 64)),
        ],
    )
    levels: list[Level] = []
    try:
        with bound_to(client_core):
            print(_HEADER)
            for _ in range(options.runs):
                for route in options.routes:
                    level = measure_route(
                        server,
                        route,
                        streams=options.streams,
                        tokens=options.tokens,
                        step_ms=options.step_ms,
                    )
                    levels.append(level)
                    _print(level)
    finally:
        server.close()
    if options.output_json is not None:
        write_report(options.output_json, Report(levels=levels))
    return 0


def _print(level: Level) -> None:
    print(
        f"{level.route:12}{level.tokens_per_second:10.0f}{level.mean_itl_ms:8.2f}{level.p99_itl_ms:8.2f}"
        f"{level.p99_in_steps:7.2f}{level.server_cpu:8.2f}{level.server_us_per_token:10.1f}"
        f"{level.client_cpu:8.2f}{level.mean_ttft_ms:9.0f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
