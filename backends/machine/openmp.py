"""Imports what brings OpenMP along, so that its threads neither spin for long nor fall asleep at once."""

import importlib
import os
import sys
from types import ModuleType

from .cpu_level import bind_libraries

_SPINS = "1000"
_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def import_with_openmp(name: str) -> ModuleType:
    """Import a module whose libgomp reads, while it is loaded, how long its threads spin before they sleep.

    By default they spin for milliseconds, and where anything else runs on the cores, every parallel region
    then waits for a thread that has no core: on two cores beside one busy process a small model decoded 13
    times slower than with 1000 spins, which on idle cores cost 2 % of a 0.5B model's time per token.

    But once a second thread of the process has had a parallel region, as with two models, only 100 spins are
    left and every region waits for threads that sleep, which made a step 1.6 times as long; unless the policy
    is ACTIVE, which leaves 1000. Other OpenMP libraries would take that word for leave to spin for ever, so
    it is gone when this returns.

    What the user has set is left alone, and so is a module that has been imported before. Here, too, torch is
    bound to the level of CPU features that is forced; see `cpu_level.bind_libraries`.
    """
    bind_libraries()
    if name in sys.modules or os.environ.keys() & {*_CHOSEN}:
        return importlib.import_module(name)
    os.environ.update(GOMP_SPINCOUNT=_SPINS, OMP_WAIT_POLICY="ACTIVE")
    try:
        return importlib.import_module(name)
    finally:
        for variable in _CHOSEN:
            del os.environ[variable]
