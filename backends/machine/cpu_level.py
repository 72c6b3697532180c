"""The level of CPU features that is made use of: all that the CPU has, or what MILLSTREAM_CPU_LEVEL says.

Forcing a lower level shows on one machine what happens on lesser ones. It binds the native kernels and torch
with its libraries (oneDNN, MKL). llama.cpp is compiled for one kind of CPU and cannot be told otherwise, and
NumPy's dispatch is its own.
"""

import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ...errors import InvalidArgument, NotSupported
from .hardware import cpu_features

CPU_LEVEL_VARIABLE = "MILLSTREAM_CPU_LEVEL"


class CpuLevel(NamedTuple):
    """What a level needs and what it leaves in use, and the words that bind torch's libraries to it."""

    needs: frozenset[str]
    uses: frozenset[str]
    variables: Mapping[str, str]


def _variables(aten: str, onednn: str, mkl: str) -> Mapping[str, str]:
    return MappingProxyType(
        {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    )


_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni"}

CPU_LEVELS: Mapping[str, CpuLevel] = MappingProxyType(
    {
        "generic": CpuLevel(frozenset(), frozenset({"neon"}), _variables("default", "SSE41", "SSE4_2")),
        "avx2": CpuLevel(_AVX2, _AVX2, _variables("avx2", "AVX2", "AVX2")),
        "avx512": CpuLevel(
            _AVX512, _AVX512 | {"avx_vnni"}, _variables("avx512", "AVX512_CORE_BF16", "AVX512")
        ),
    }
)
"""Levels by name, the lowest first; the native kernels have the same names."""


def forced_level(features: frozenset[str] | None = None) -> str | None:
    """The level that the environment asks for; None: none, and everything the CPU has is used.

    Args:
        features: of the CPU; by default this one's.

    Raises:
        InvalidArgument: there is no such level, or this CPU does not have it.
    """
    asked = os.environ.get(CPU_LEVEL_VARIABLE)
    if not asked:
        return None
    found = cpu_features() if features is None else features
    allowed = [name for name, level in CPU_LEVELS.items() if level.needs <= found]
    if asked not in allowed:
        lacking = " (the CPU has no more)" if asked in CPU_LEVELS else ""
        raise InvalidArgument(CPU_LEVEL_VARIABLE, asked, ", ".join(allowed) + lacking)
    return asked


def usable_features() -> frozenset[str]:
    """Those of `hardware.cpu_features` that are made use of."""
    level = forced_level()
    found = cpu_features()
    return found if level is None else found & CPU_LEVELS[level].uses


def at_most(level: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the native kernels' levels, in their order, that are `level` or below it."""
    order = list(CPU_LEVELS)
    return tuple(name for name in names if order.index(name) <= order.index(level))


def bind_libraries() -> None:
    """Bind torch's libraries to the forced level, here and in child processes; they read it when imported.

    Raises:
        InvalidArgument: see `forced_level`.
        NotSupported: torch has been imported without it.
    """
    level = forced_level()
    if level is None:
        return
    variables = CPU_LEVELS[level].variables
    if "torch" in sys.modules and any(os.environ.get(name) != word for name, word in variables.items()):
        raise NotSupported(
            f"{CPU_LEVEL_VARIABLE}={level} comes too late: torch has been imported; "
            "import millstream.backends.torch first"
        )
    os.environ.update(variables)
