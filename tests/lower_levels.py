"""Levels of CPU features below the one in use, tested in processes of their own: torch is bound only once."""

import os
import subprocess
import sys
from pathlib import Path

from millstream.backends.machine.cpu_level import CPU_LEVEL_VARIABLE, CPU_LEVELS, at_most, forced_level
from millstream.backends.machine.hardware import cpu_features

ROOT = Path(__file__).resolve().parent.parent
AVAILABLE = at_most(
    forced_level() or list(CPU_LEVELS)[-1],
    tuple(name for name, level in CPU_LEVELS.items() if level.needs <= cpu_features()),
)
LOWER_LEVELS = AVAILABLE[:-1]
"""Those below the level in use that this CPU can be held to."""


def run_at(level: str, *arguments: str) -> str:
    """What Python prints that is started with these arguments at a level; it must end well."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, CPU_LEVEL_VARIABLE: level},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout.strip()
