"""The range of transformers: one fact, in code and in pyproject.toml, and what is said outside of it."""

import tomllib
import warnings
from pathlib import Path

import pytest

from millstream.backends.torch.versions import NEWEST, OLDEST, check_transformers
from millstream.errors import NotSupported

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def test_the_project_asks_for_what_is_tested():
    needs = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    (major, oldest), (_, newest) = OLDEST, NEWEST
    assert f"transformers>={major}.{oldest},<{major}.{newest + 1}" in needs


@pytest.mark.parametrize("version", ["5.16.0", "5.24.3", "5.20.0.dev0"])
def test_tested_versions_are_taken_in_silence(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_transformers(version)


@pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.15.1", "5.9"])
def test_older_versions_are_refused_by_name(version):
    with pytest.raises(
        NotSupported, match=rf"transformers {version} is installed; .*need transformers 5.16 to"
    ):
        check_transformers(version)


@pytest.mark.parametrize("version", ["5.25.0", "6.0.0", "5.25.0.dev0"])
def test_newer_versions_are_told(version):
    with pytest.warns(UserWarning, match=rf"transformers {version} is newer than any tested one"):
        check_transformers(version)
