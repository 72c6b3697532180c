"""What libgomp is told when a worker's library brings it along, and what is left behind of that."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch brings another OpenMP library")
IMPORTS = ["import millstream.backends.torch", "from millstream.backends.answers import Sampler"]
LEFT = """
import os, sys
exec(sys.argv[1])
print(sorted(set(os.environ) & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}))
"""


def imported(statement: str, **environment: str) -> tuple[str, str]:
    """What a fresh interpreter prints that runs an import, and what libgomp does."""
    inherited = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    run = subprocess.run(
        [sys.executable, "-c", LEFT, statement],
        env={**inherited, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip(), run.stderr


@pytest.mark.parametrize("statement", IMPORTS)
def test_threads_spin_for_a_while_and_no_variable_is_left(statement: str) -> None:
    left, told = imported(statement)
    assert "GOMP_SPINCOUNT = '1000'" in told
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in told
    assert left == "[]"


def test_what_the_user_has_set_is_left_alone() -> None:
    left, told = imported("import millstream.backends.torch", GOMP_SPINCOUNT="77")
    assert "GOMP_SPINCOUNT = '77'" in told
    assert "OMP_WAIT_POLICY = 'ACTIVE'" not in told
    assert left == "['GOMP_SPINCOUNT']"
