"""The table of what tests need names what is there."""

import tomllib
from pathlib import Path

import pytest

from .conftest import NEEDS, TESTS, markers_of

REGISTERED = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"][
    "markers"
]


def test_every_place_exists_and_says_its_need_once():
    for marker, places in NEEDS.items():
        for place in places:
            assert (TESTS / place).exists(), f"{marker}: {place}"
            assert not any(Path(place).is_relative_to(other) for other in places if other != place), place


def test_markers_are_registered():
    assert {line.split(":")[0] for line in REGISTERED} == set(NEEDS)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("backends/torch/decoder/test_rope.py", {"torch"}),
        ("backends/export/test_adapter.py", {"torch", "llamacpp"}),
        ("backends/torchless.py", set()),
        ("kvcache", set()),
    ],
)
def test_a_folder_marks_what_lies_in_it(path, expected):
    assert markers_of(TESTS / path) == expected
