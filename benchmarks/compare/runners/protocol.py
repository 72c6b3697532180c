"""What the comparing process and a runner say to each other: a Job in a file, an Outcome in another.

Times are seconds of one clock, which starts when the first measured request is handed over.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Protocol

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: tokens in, and how many are to come out, whatever they are."""

    token_ids: list[int]
    output_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a runner is to do."""

    model: str
    """File or folder in the format of the engine."""
    threads: int
    in_flight: int
    """At most so many requests are handed over and not finished."""
    max_length: int
    """Prompt and output of the longest request, in tokens."""
    prefix_cache: bool
    shared_len: int
    """Tokens that all requests begin with."""
    settings: dict[str, Setting]
    """Of the engine; each runner says which it knows."""
    warmup: list[Asked]
    """Served before, and like no measured request."""
    earlier: list[Asked]
    """Served before the measurement, to fill the prefix cache."""
    requests: list[Asked]

    @property
    def num_sequences(self) -> int:
        """Sequences that memory is needed for at once."""
        return max(min(self.in_flight, len(self.requests)), len(self.warmup)) + len(self.earlier)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's output and the moments of its life."""

    handed_over: float
    moments: list[float]
    """When each token came; those that came together have the same."""
    token_ids: list[int]

    @property
    def first(self) -> float:
        """When the first token came."""
        return self.moments[0]

    @property
    def last(self) -> float:
        """When the last token came."""
        return self.moments[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was measured; `failure` is why nothing was."""

    failure: str | None = None
    load_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_rss_bytes: int = 0
    """Of the process and its children since they began, loading included."""
    answers: list[Answer] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)


class Server(Protocol):
    """A loaded model."""

    def serve(self, load: "Load") -> None:
        """Hand over all requests of `load`, and tell it what comes back."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Load:
    """Requests as a client has them in hand: at most `in_flight` at a time, the next when one is finished."""

    def __init__(self, requests: Sequence[Asked], in_flight: int) -> None:
        self.requests = list(requests)
        self.in_flight = in_flight
        self.started = perf_counter()
        self._handed_over: list[float] = []
        self._moments: list[list[float]] = [[] for _ in requests]
        self._token_ids: list[list[int]] = [[] for _ in requests]
        self._num_finished = 0
        self._waits_for_batch = False

    @property
    def finished(self) -> bool:
        """All outputs are there."""
        return self._num_finished == len(self.requests)

    def hand_over(self) -> Iterator[int]:
        """Numbers of the requests to hand over now."""
        while self._may_hand_over():
            self._handed_over.append(self._now())
            yield len(self._handed_over) - 1

    def batches(self, size: int) -> Iterator[list[int]]:
        """Numbers of the requests batch by batch, for engines that serve no other way.

        A request that may be handed over is, and waits for its batch, which begins when the one before ended.

        Raises:
            ValueError: no batch would come together, since it needs more requests than may be in flight.
        """
        if size > self.in_flight:
            raise ValueError(f"batches of {size} requests, but only {self.in_flight} in flight")
        self._waits_for_batch = True
        self._hand_over_all()
        for begin in range(0, len(self.requests), size):
            yield list(range(begin, min(begin + size, len(self.requests))))

    def receive(self, number: int, token_ids: Sequence[int]) -> bool:
        """Output of a request has come; whether the request has all of it.

        Raises:
            ValueError: there is more of it than was asked for.
        """
        if token_ids:
            got, wanted = self._token_ids[number], self.requests[number].output_len
            got.extend(int(token_id) for token_id in token_ids)
            self._moments[number] += [self._now()] * len(token_ids)
            if len(got) > wanted:
                raise ValueError(f"request {number} got {len(got)} tokens instead of {wanted}")
            if len(got) == wanted:
                self._num_finished += 1
                if self._waits_for_batch:
                    self._hand_over_all()
        return len(self._token_ids[number]) == self.requests[number].output_len

    def answers(self) -> list[Answer]:
        """All of them.

        Raises:
            ValueError: a request ended early.
        """
        for number, (asked, got) in enumerate(zip(self.requests, self._token_ids, strict=True)):
            if len(got) != asked.output_len:
                raise ValueError(f"request {number} got {len(got)} tokens instead of {asked.output_len}")
        return [
            Answer(handed_over, moments, token_ids)
            for handed_over, moments, token_ids in zip(
                self._handed_over, self._moments, self._token_ids, strict=True
            )
        ]

    def _hand_over_all(self) -> None:
        for _ in self.hand_over():
            pass

    def _may_hand_over(self) -> bool:
        running = len(self._handed_over) - self._num_finished
        return len(self._handed_over) < len(self.requests) and running < self.in_flight

    def _now(self) -> float:
        return perf_counter() - self.started


def read_job(path: Path) -> Job:
    """The job in a file.

    Raises:
        KeyError, TypeError: it is none.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("warmup", "earlier", "requests"):
        content[name] = [Asked(**asked) for asked in content[name]]
    return Job(**content)


def read_outcome(path: Path) -> Outcome:
    """The outcome in a file.

    Raises:
        KeyError, TypeError: it is none.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    content["answers"] = [Answer(**answer) for answer in content["answers"]]
    return Outcome(**content)


def write(path: Path, message: Job | Outcome) -> None:
    """Put a job or an outcome in a file."""
    path.write_text(json.dumps(asdict(message)), encoding="utf-8")


def serve_job(job: Job, load_server: Callable[[Job], Server], packages: Sequence[str]) -> Outcome:
    """Load the model, warm it up, and measure the job's requests."""
    started = perf_counter()
    server = load_server(job)
    load_seconds = perf_counter() - started
    try:
        for requests in (job.warmup, job.earlier):
            if requests:
                _serve(server, requests, job.in_flight)
        answers = _serve(server, job.requests, job.in_flight).answers()
        peak_rss = peak_rss_bytes()
    finally:
        server.close()
    return Outcome(
        load_seconds=load_seconds,
        wall_seconds=max(answer.last for answer in answers),
        peak_rss_bytes=peak_rss,
        answers=answers,
        versions=_versions(packages),
        settings=job.settings,
    )


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed: an engine may need different ones for different models."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _serve(server: Server, requests: Sequence[Asked], in_flight: int) -> Load:
    load = Load(requests, in_flight)
    server.serve(load)
    return load


def run(load_server: Callable[[Job], Server], packages: Sequence[str]) -> int:
    """The whole of a runner: the job's file and the outcome's are its arguments; gives its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("outcome", type=Path)
    options = parser.parse_args()
    try:
        outcome = serve_job(read_job(options.job), load_server, packages)
    except Exception as error:  # whatever a peer raises is a row of the table
        write(options.outcome, Outcome(failure=f"{type(error).__name__}: {error}"))
        raise
    write(options.outcome, outcome)
    return 0


def peak_rss_bytes(process: Path = Path("/proc/self")) -> int:
    """Most memory that a process and each of its children have had, in sum.

    `ru_maxrss` would not do: it counts what the process had before it became this program.
    """
    status = (process / "status").read_text(encoding="utf-8")
    peak = int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024
    for children in process.glob("task/*/children"):
        for child in children.read_text(encoding="utf-8").split():
            peak += peak_rss_bytes(Path("/proc") / child)
    return peak
