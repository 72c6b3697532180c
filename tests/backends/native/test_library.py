"""What is found of the native kernels, and what is said where they are missing."""

import sys
from pathlib import Path

import pytest

from millstream.backends import native
from millstream.backends.native import Missing, best_level, levels, load
from millstream.errors import InvalidArgument

FOUND = levels()


@pytest.mark.skipif(isinstance(FOUND, Missing), reason="the native kernels are not built")
def test_levels_end_with_the_one_that_runs_everywhere() -> None:
    assert not isinstance(FOUND, Missing)
    assert FOUND[-1] == "generic"
    assert best_level() == FOUND[0]
    for level in FOUND:
        with pytest.raises(TypeError, match="expected 19 arguments, got 0"):
            load(level).attend()  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match=r"level is 'mmx'; allowed: .*generic"):
        load("mmx")


@pytest.mark.parametrize(
    ("compiler", "sentence"), [(True, "install Millstream again"), (False, "C\\+\\+ compiler")]
)
def test_missing_kernels_are_explained(
    compiler: bool, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"{native.__name__}._kernels"
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr(native, "_kernels", raising=False)
    monkeypatch.setenv("CXX", sys.executable if compiler else str(tmp_path / "none"))
    found = levels()
    assert isinstance(found, Missing)
    assert best_level() == found
    with pytest.raises(InvalidArgument, match=sentence):
        load("generic")
