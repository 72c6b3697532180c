"""What the benchmarks' commands ask of their flags."""

import argparse

from ..errors import InvalidArgument


def require_at_least(options: argparse.Namespace, **least: float) -> None:
    """Refuse options below their least value; of one that is a list, each value counts.

    Args:
        least: name of an option, as it stands in `options` -> its least value.

    Raises:
        InvalidArgument: one is below it, or no number.
    """
    for name, value in least.items():
        given = getattr(options, name)
        for one in given if isinstance(given, list) else [given]:
            if not one >= value:
                raise InvalidArgument(f"--{name.replace('_', '-')}", one, f"{value:g} or more")
