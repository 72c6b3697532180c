"""The level of CPU features that is forced: what it allows, what it binds, and what is refused."""

import os
import sys

import pytest

from millstream.backends.machine.cpu_level import (
    CPU_LEVEL_VARIABLE,
    CPU_LEVELS,
    at_most,
    bind_libraries,
    forced_level,
    usable_features,
)
from millstream.backends.machine.hardware import CPU_FEATURES, cpu_features
from millstream.errors import InvalidArgument, NotSupported

from ...lower_levels import AVAILABLE, LOWER_LEVELS, run_at

AVX2_CPU = frozenset({"avx2", "fma"})
SHOWN = """
import millstream.backends.torch
import torch
from millstream.backends.native import best_level
print(torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported(), best_level())
"""


def test_levels_are_made_of_known_features():
    for level in CPU_LEVELS.values():
        assert level.needs <= CPU_FEATURES and level.uses <= CPU_FEATURES
    assert CPU_LEVELS["generic"].needs == set()


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_is_forced_by_default(value, monkeypatch):
    monkeypatch.delenv(CPU_LEVEL_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(CPU_LEVEL_VARIABLE, value)
    before = dict(os.environ)
    assert forced_level() is None and usable_features() == cpu_features()
    bind_libraries()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("asked", "features", "sentence"),
    [
        ("mmx", AVX2_CPU, "MILLSTREAM_CPU_LEVEL is 'mmx'; allowed: generic, avx2$"),
        ("AVX2", AVX2_CPU, "is 'AVX2'; allowed: generic, avx2$"),
        ("avx512", AVX2_CPU, r"is 'avx512'; allowed: generic, avx2 \(the CPU has no more\)$"),
        ("avx2", frozenset({"neon"}), r"is 'avx2'; allowed: generic \(the CPU has no more\)$"),
    ],
)
def test_a_level_that_cannot_be_forced_is_refused(asked, features, sentence, monkeypatch):
    monkeypatch.setenv(CPU_LEVEL_VARIABLE, asked)
    with pytest.raises(InvalidArgument, match=sentence):
        forced_level(features)


def test_a_level_uses_no_feature_above_it(monkeypatch):
    monkeypatch.setenv(CPU_LEVEL_VARIABLE, "generic")
    assert forced_level(AVX2_CPU) == "generic"
    assert usable_features() <= {"neon"}
    assert at_most("avx2", ("avx512", "avx2", "generic")) == ("avx2", "generic")
    assert at_most("generic", ("avx512", "avx2", "generic")) == ("generic",)


def test_a_level_that_comes_after_torch_is_refused(monkeypatch):
    monkeypatch.setenv(CPU_LEVEL_VARIABLE, "generic")
    monkeypatch.setitem(sys.modules, "torch", sys)
    for name in CPU_LEVELS["generic"].variables:
        monkeypatch.setenv(name, "something else")
    with pytest.raises(NotSupported, match="MILLSTREAM_CPU_LEVEL=generic comes too late"):
        bind_libraries()
    for name, word in CPU_LEVELS["generic"].variables.items():
        monkeypatch.setenv(name, word)
    bind_libraries()


@pytest.mark.torch
@pytest.mark.skipif("avx2" not in AVAILABLE, reason="torch names no levels of this CPU")
@pytest.mark.parametrize("level", LOWER_LEVELS)
def test_torch_and_the_kernels_are_bound(level):
    capability, has_bfloat16, kernels = run_at(level, "-c", SHOWN).split(" ", 2)
    assert capability == {"generic": "DEFAULT"}.get(level, level.upper())
    assert has_bfloat16 == "False"
    assert kernels == level or kernels.startswith("Missing")
