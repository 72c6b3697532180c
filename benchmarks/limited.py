"""Programs that may take only so long; the standard library alone is needed."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and what it said."""

    returncode: int | None
    """None where its time was up."""
    lines: list[str]
    """Of both its outputs, without blank ones."""


def run_limited(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Ended:
    """Run a program; after so many seconds it is killed with all that it has started."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    returncode: int | None = None
    try:
        said, _ = process.communicate(timeout=seconds)
        returncode = process.returncode
    except subprocess.TimeoutExpired:
        said = _kill(process)
    except BaseException:
        _kill(process)
        raise
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    return Ended(returncode, lines)


def _kill(process: "subprocess.Popen[str]") -> str:
    # With its children: as long as one lives, the pipe stays open.
    os.killpg(process.pid, signal.SIGKILL)
    said, _ = process.communicate()
    return said
