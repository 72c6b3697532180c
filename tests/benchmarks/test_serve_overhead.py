"""The benchmark of the server: a small run as a user starts it, what is steady, and its refusals."""

import json
import os
import subprocess
import sys

import pytest

from millstream.benchmarks.serve.outcome import Outcome, State
from millstream.benchmarks.serve_overhead import ROUTES, Level, main, steady_part
from millstream.errors import MillstreamError


def outcome(*arrivals):
    return Outcome(state=State.SUCCEEDED, started=0.0, ended=arrivals[-1], arrivals=list(arrivals))


def test_steady_is_what_all_streams_share():
    assert steady_part([outcome(1.0, 2.0, 5.0), outcome(1.5, 4.0), outcome(0.5, 6.0)]) == (1.5, 4.0)
    with pytest.raises(MillstreamError, match="--tokens"):
        steady_part([outcome(1.0, 2.0), outcome(2.0, 3.0)])


@pytest.mark.skipif(os.name != "posix", reason="the server is ended by a signal")
def test_a_small_run(capsys, tmp_path):
    file = tmp_path / "report.json"
    argv = ["--streams", "3", "--tokens", "40", "--step-ms", "5", "--all-cores", "--output-json", str(file)]
    assert main(argv) == 0
    report = json.loads(file.read_text())
    assert [level["route"] for level in report["levels"]] == list(ROUTES)
    assert "commit" in report["environment"]
    for level in report["levels"]:
        assert set(level) == set(Level.__struct_fields__)
        assert (level["streams"], level["step_ms"]) == (3, 5.0)
        assert 0 < level["p50_itl_ms"] <= level["p99_itl_ms"] <= level["max_itl_ms"]
        assert level["p99_in_steps"] == pytest.approx(level["p99_itl_ms"] / 5)
        assert level["tokens_per_second"] > 0 and level["steady_seconds"] > 0
        assert level["server_us_per_token"] >= 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    "argv",
    [["--streams", "0"], ["--tokens", "1"], ["--step-ms", "-1"], ["--step-ms", "nan"], ["--routes", "x"]],
)
def test_refusals(argv, capsys):
    assert main(argv) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("module", ["serve_overhead", "serve.__main__"])
def test_without_its_client_it_says_what_is_missing(module):
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        f"from millstream.benchmarks.{module} import main; sys.exit(main([]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "millstream: error: aiohttp is not installed: pip install aiohttp\n"
