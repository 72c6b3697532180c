"""Which versions of transformers this worker runs on: what `make transformers` tests."""

import re
import warnings
from importlib.metadata import version

from ...errors import NotSupported

OLDEST = (5, 16)
NEWEST = (5, 24)
"""The oldest and the newest release that the tests pass with; pyproject.toml says the same."""


def check_transformers(installed: str | None = None) -> None:
    """Refuse a transformers older than the tested ones; warn of a newer one.

    Args:
        installed: a version; by default that of the installed package.

    Raises:
        NotSupported: it is too old.
    """
    installed = version("transformers") if installed is None else installed
    found = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    tested = f"transformers {_name(OLDEST)} to {_name(NEWEST)}"
    if found < OLDEST:
        raise NotSupported(
            f"transformers {installed} is installed; Hugging Face checkpoints need {tested}: "
            f"pip install 'transformers>={_name(OLDEST)}'"
        )
    if found > NEWEST:
        warnings.warn(f"transformers {installed} is newer than any tested one ({tested})", stacklevel=2)


def _name(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
