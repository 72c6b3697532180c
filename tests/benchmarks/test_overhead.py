"""The overhead command counts the right steps."""

import json
from pathlib import Path

import pytest

from millstream.benchmarks.overhead import Setting, main, measure, steady_part
from millstream.benchmarks.replay import Mark
from millstream.errors import MillstreamError


def mark(num_chunks: int, num_tokens: int, at: float) -> Mark:
    made = Mark(num_chunks, num_tokens, at, 2 * at)
    made.execute_seconds = 0.25
    return made


def test_only_steps_with_everybody_in_them_count() -> None:
    marks = [mark(2, 60, 0), mark(2, 2, 10), mark(2, 2, 11), mark(2, 2, 13), mark(1, 1, 50), mark(2, 2, 60)]
    run = steady_part(marks, 2)
    assert (run.steps, run.wall, run.cpu, run.execute) == (2, 3, 6, 0.5)
    with pytest.raises(MillstreamError, match="3 requests"):
        steady_part(marks, 3)


@pytest.mark.parametrize("readers", [True, False])
def test_a_level_is_measured(readers: bool) -> None:
    level = measure(3, Setting(runs=2, readers=readers, max_steps=20))
    assert level.steps >= 15
    assert len(level.engine_us_of_runs) == 2
    assert 0 < level.execute_us < level.cpu_us
    assert level.tokens_per_second == pytest.approx(1e6 / level.engine_us)


def test_the_command_writes_a_report_and_a_profile(tmp_path: Path) -> None:
    report, profile = tmp_path / "report.json", tmp_path / "profile.out"
    argv = ["--running", "2", "4", "--runs", "1", "--max-steps", "20", "--all-cores"]
    assert main([*argv, "--output-json", str(report), "--profile", str(profile)]) == 0
    written = json.loads(report.read_text())
    assert [level["running"] for level in written["levels"]] == [2, 4]
    assert written["setting"]["one_core"] is False
    assert written["environment"]["cpu"]
    assert profile.stat().st_size > 0


def test_wrong_numbers_are_refused() -> None:
    assert main(["--running", "0"]) == 2
    assert main(["--runs", "0"]) == 2
