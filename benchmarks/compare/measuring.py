"""Runs one engine on one workload in a process of its own."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..limited import run_limited
from .environments import Layout
from .peers import Peer
from .runners.protocol import Job, Outcome, read_outcome, write
from .workloads import Workload

_LAUNCH = Path(__file__).resolve().parent / "runners" / "launch.py"
_INSTALLED_WITH_MILLSTREAM = ("millstream_engine", "llamacpp")
"""Runners that are modules of Millstream; the others are launched without it."""
_LAST_LINES = 3
_TRIED_REQUESTS = 8
"""At most so many are served to find the best settings."""

Measure = Callable[[Peer, Workload], Outcome]
"""One measurement."""


class Measurer:
    """Measures peers whose environments and models lie in one folder."""

    def __init__(self, layout: Layout, *, threads: int, timeout: float) -> None:
        self._layout = layout
        self._threads = threads
        self._timeout = timeout

    def __call__(self, peer: Peer, workload: Workload) -> Outcome:
        """Measure once; what goes wrong is said in the outcome."""
        missing = why_not(peer, workload, self._layout)
        if missing is not None:
            return Outcome(failure=missing)
        job = Job(
            model=str(self._layout.model(peer.model)),
            threads=self._threads,
            in_flight=workload.in_flight,
            max_length=workload.max_length,
            prefix_cache=uses_prefix_cache(peer, workload),
            shared_len=workload.shared_len,
            settings=peer.settings,
            warmup=workload.warmup,
            earlier=workload.earlier,
            requests=workload.requests,
        )
        return run_job(job, command(peer, self._layout.python(peer.environment)), self._timeout)


def with_best_settings(peer: Peer, workload: Workload, measure: Measure) -> Peer:
    """The peer with those of its settings that serve a few of the requests in the shortest time."""
    if not peer.alternatives:
        return peer
    few = workload.first(_TRIED_REQUESTS)
    seconds: dict[float, Peer] = {}
    for settings in (peer.settings, *peer.alternatives):
        tried = replace(peer, settings=settings, alternatives=())
        outcome = measure(tried, few)
        if outcome.failure is None:
            seconds.setdefault(outcome.wall_seconds, tried)
    return seconds[min(seconds)] if seconds else peer


def uses_prefix_cache(peer: Peer, workload: Workload) -> bool:
    """Whether the engine is to keep what prompts begin with."""
    if workload.prefix_cache is None:
        return peer.prefix_cache_by_default
    return workload.prefix_cache


def why_not(peer: Peer, workload: Workload, layout: Layout) -> str | None:
    """Why a peer cannot be measured on a workload; None where it can."""
    if workload.prefix_cache and not peer.prefix_cache:
        return "has no prefix cache: see w4-off"
    if workload.prefix_cache is False and peer.prefix_cache and not peer.is_ours:
        return "has a prefix cache: see w4-warm and w4-cold"
    if not layout.python(peer.environment).exists():
        return f"not installed: no environment {peer.environment}"
    if not layout.model(peer.model).exists():
        return f"not converted: no model {peer.model} of {layout.shape}"
    return None


def command(peer: Peer, python: Path) -> list[str]:
    """The runner's program, without its arguments."""
    if peer.runner in _INSTALLED_WITH_MILLSTREAM:
        # -P: the folder that the user is in has no say in which modules are found.
        return [str(python), "-P", "-m", f"{__package__}.runners.{peer.runner}"]
    return [str(python), "-P", str(_LAUNCH), peer.runner]


def run_job(job: Job, program: Sequence[str], timeout: float) -> Outcome:
    """Have a runner do a job; a runner that fails, dies or takes too long gives an outcome that says so."""
    with TemporaryDirectory(prefix="millstream-compare-") as folder:
        asked, answered = Path(folder, "job.json"), Path(folder, "outcome.json")
        write(asked, job)
        # Without a hub: everything that is needed is on this machine.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        ended = run_limited([*program, str(asked), str(answered)], environment, timeout)
        if ended.returncode is None:
            return Outcome(failure=f"not done after {timeout:g} s")
        if answered.exists():
            return read_outcome(answered)
        said = " / ".join(line.strip() for line in ended.lines[-_LAST_LINES:])
        return Outcome(failure=f"ended with {ended.returncode}: {said}")
