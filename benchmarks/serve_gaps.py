"""Measures what others' large bodies do to a running stream: its gaps before them and beside them.

python -m millstream.benchmarks.serve_gaps --bodies 4

The real application runs over a worker that only takes its time (benchmarks/serve/application.py). One client
reads a stream; then others send large bodies at the same moment, and all gaps of the stream count until the
last of them has its answer.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import msgspec

from ..api.cli.terminal import CommandParser, command_status
from ..errors import InvalidArgument, MillstreamError
from .environment import write_report
from .serve_overhead import Server

_SENTENCE = "The quick brown fox jumps over the lazy dog, and then what? "
_HEADER = "case               quiet ms  beside ms  added ms  seconds   MiB  answers"
_MAX_LENGTH = 65_536
_SAMPLE_SECONDS = 0.02


def _text(size: int) -> str:
    return (_SENTENCE * (size // len(_SENTENCE) + 1))[:size]


def _chat(*contents: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], "max_tokens": 1}


CASES: Mapping[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "chat-8mb": ("/v1/chat/completions", lambda: _chat(_text(8_000_000))),
    "completion-8mb": ("/v1/completions", lambda: {"prompt": _text(8_000_000), "max_tokens": 1}),
    "messages-20000": ("/v1/chat/completions", lambda: _chat(*["hi there"] * 20_000)),
    "ids-1000000": ("/v1/completions", lambda: {"prompt": [1] * 1_000_000, "max_tokens": 1}),
    "tokenize-1mb": ("/tokenize", lambda: {"prompt": _text(1_000_000)}),
    "prompt-100kb": ("/v1/completions", lambda: {"prompt": _text(100_000), "max_tokens": 1}),
}
"""Name -> path and body. The last two are answered; the others do not fit."""


class Gaps(msgspec.Struct, frozen=True, kw_only=True):
    """One case; gaps in milliseconds, each the longest of its time."""

    case: str
    quiet_ms: float
    beside_ms: float
    seconds: float
    """From the first byte of the bodies to the last answer."""
    peak_mib: float
    """Most memory of the server's process meanwhile."""
    statuses: list[int]
    """Of the answers; 0 where the connection broke."""

    @property
    def added_ms(self) -> float:
        """By how much the longest gap has grown."""
        return self.beside_ms - self.quiet_ms


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All cases, in their order."""

    cases: list[Gaps]


class Stream(threading.Thread):
    """Reads one endless stream and notes when its events come."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.arrivals: list[float] = []
        self.fault = ""
        self._connection = HTTPConnection("127.0.0.1", port, timeout=120)
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `close`."""
        body = {"prompt": "import os", "max_tokens": _MAX_LENGTH // 2, "ignore_eos": True, "stream": True}
        try:
            self._connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = self._connection.getresponse()
            if answer.status != 200:
                self.fault = f"the stream was answered with {answer.status}: {answer.read(400)!r}"
                return
            while not self._ended.is_set() and (line := answer.readline()):
                if line.startswith(b"data:"):
                    self.arrivals.append(perf_counter())
        except (OSError, HTTPException) as error:
            self.fault = f"the stream broke: {error}"
        finally:
            self._connection.close()

    def require(self) -> None:
        """Raise MillstreamError where it does not run any more."""
        if self.fault or not self.is_alive():
            raise MillstreamError(self.fault or "the stream has ended too early")

    def longest_gap(self, begin: float, end: float) -> float:
        """In milliseconds; the gaps that reach into the time from `begin` to `end`."""
        times = list(self.arrivals)
        inside = [b - a for a, b in pairwise(times) if b >= begin and a <= end]
        if not inside:
            raise MillstreamError("the stream had no event in the measured time")
        return max(inside) * 1000

    def close(self) -> None:
        """End it with its next event."""
        self._ended.set()
        self.join()


def measure_case(server: Server, case: str, *, bodies: int, quiet_seconds: float) -> Gaps:
    """One case. Raises MillstreamError where the stream does not run from end to end."""
    path, make = CASES[case]
    body = json.dumps(make()).encode()
    stream = Stream(server.port)
    stream.start()
    try:
        while len(stream.arrivals) < 10:
            sleep(_SAMPLE_SECONDS)
            stream.require()
        settled = perf_counter()
        sleep(quiet_seconds)
        begin, peak = perf_counter(), 0
        with ThreadPoolExecutor(bodies) as senders:
            answers = [senders.submit(_send, server.port, path, body) for _ in range(bodies)]
            while not all(answer.done() for answer in answers):
                peak = max(peak, server.process.memory_info().rss)
                sleep(_SAMPLE_SECONDS)
        end = perf_counter()
        # The gap that was open at the end belongs to it.
        seen = len(stream.arrivals)
        while len(stream.arrivals) < seen + 2:
            stream.require()
            sleep(_SAMPLE_SECONDS)
    finally:
        stream.close()
    return Gaps(
        case=case,
        quiet_ms=stream.longest_gap(settled, begin),
        beside_ms=stream.longest_gap(begin, end),
        seconds=end - begin,
        peak_mib=peak / 2**20,
        statuses=[answer.result() for answer in answers],
    )


def _send(port: int, path: str, body: bytes) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.serve_gaps",
        description="Measure the gaps of a stream beside large bodies.",
    )
    add = parser.add_argument
    add("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE", help=", ".join(CASES))
    add("--bodies", type=int, default=4, metavar="N", help="sent at the same moment")
    add("--step-ms", type=float, default=8.0, help="time of the worker's step")
    add("--quiet-seconds", type=float, default=2.0, help="before the bodies are sent")
    add("--output-json", type=Path, metavar="FILE")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if options.bodies < 1:
        raise InvalidArgument("--bodies", options.bodies, "1 or more")
    results: list[Gaps] = []
    print(_HEADER)
    for case in options.cases:
        # Each has a process of its own: memory that one has taken is not counted for the next.
        server = Server(
            None, ["--step-ms", str(options.step_ms), "--max-num-seqs", "8", "--max-length", str(_MAX_LENGTH)]
        )
        try:
            gaps = measure_case(server, case, bodies=options.bodies, quiet_seconds=options.quiet_seconds)
        finally:
            server.close()
        results.append(gaps)
        print(
            f"{gaps.case:16}{gaps.quiet_ms:11.1f}{gaps.beside_ms:11.1f}{gaps.added_ms:10.1f}"
            f"{gaps.seconds:9.1f}{gaps.peak_mib:6.0f}  {' '.join(map(str, gaps.statuses))}",
            flush=True,
        )
    if options.output_json is not None:
        write_report(options.output_json, Report(cases=results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
