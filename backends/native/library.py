"""Finds the extension module and the levels of CPU features it can be used at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InvalidArgument
from ..machine.cpu_level import at_most, forced_level
from ..machine.hardware import find_compiler

if TYPE_CHECKING:
    from ._kernels import Functions


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there are no native kernels here."""

    reason: str


def levels() -> tuple[str, ...] | Missing:
    """Levels that were built and that this CPU can run, the fastest one first; never empty.

    None is above the level that is forced.

    Raises:
        InvalidArgument: the forced level is none, or this CPU does not have it.
    """
    try:
        from . import _kernels
    except ImportError as error:
        if find_compiler() is None:
            return Missing(
                "not built: install a C++ compiler (g++ 11 or newer), then install Millstream again"
            )
        return Missing(f"not built, or not for this Python: install Millstream again ({error})")
    forced = forced_level()
    return _kernels.LEVELS if forced is None else at_most(forced, _kernels.LEVELS)


def best_level() -> str | Missing:
    """The fastest of `levels`."""
    found = levels()
    return found if isinstance(found, Missing) else found[0]


def set_threads(count: int) -> None:
    """How many threads the kernels that the calling thread calls take from now on; one until it was said."""
    try:
        from . import _kernels
    except ImportError:
        return  # there are no kernels
    _kernels.set_threads(count)


def load(level: str) -> Functions:
    """The kernels of one of `levels`.

    Raises:
        InvalidArgument: there is no such level here.
    """
    found = levels()
    if isinstance(found, Missing):
        raise InvalidArgument("level", level, f"none: the native kernels are {found.reason}")
    if level not in found:
        raise InvalidArgument("level", level, ", ".join(found))
    from . import _kernels

    return _kernels.functions(level)
