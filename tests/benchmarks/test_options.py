"""Flags below their least value are refused by name."""

from argparse import Namespace

import pytest

from millstream.benchmarks.options import require_at_least
from millstream.errors import InvalidArgument


def test_what_is_large_enough_passes() -> None:
    require_at_least(Namespace(runs=1, step_ms=0.0, levels=[2, 1]), runs=1, step_ms=0, levels=1)


@pytest.mark.parametrize(
    ("options", "least", "message"),
    [
        (Namespace(runs=0), {"runs": 1}, "--runs is 0; allowed: 1 or more"),
        (Namespace(max_steps=1), {"max_steps": 2}, "--max-steps is 1; allowed: 2 or more"),
        (Namespace(levels=[4, -1]), {"levels": 0}, "--levels is -1; allowed: 0 or more"),
        (Namespace(step_ms=float("nan")), {"step_ms": 0}, "--step-ms is nan; allowed: 0 or more"),
    ],
)
def test_what_is_too_small_or_no_number_is_refused(
    options: Namespace, least: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        require_at_least(options, **least)
