"""Binding this process to cores, so that a measurement is of one of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import NotSupported


def allowed_cores(least: int = 1) -> list[int]:
    """The cores that this process may run on, ascending.

    Raises:
        NotSupported: the system cannot bind a process to cores, or there are fewer than `least`.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise NotSupported("this system cannot bind a process to a core; use --all-cores")
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < least:
        raise NotSupported(f"{least} processes need a core each; use --all-cores")
    return allowed


@contextmanager
def bound_to(core: int | None) -> Iterator[None]:
    """Bind this process, and what it starts meanwhile, to one core; None leaves it alone."""
    if core is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
