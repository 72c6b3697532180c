"""The check of a GPU: the whole way on the CPU, and steps that fail, die, hang or are not tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.benchmarks import gpu_check, gpu_steps
from millstream.benchmarks.gpu_check import STEPS, Result, Step, beside_generate, main, run_step, run_steps

SCRIPT = Path(gpu_check.__file__).with_suffix(".sh")


def test_the_whole_way_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [SCRIPT, "--dry-run", "--requests", "1", "--seconds", "3000", "--output-json", out],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert (report["device"], report["shape"], report["first_fault"]) == ("cpu", "tiny", None)
    assert [step["name"] for step in report["steps"]] == [step.name for step in STEPS]
    assert all(step["status"] == "passed" and not step["fault"] for step in report["steps"])
    details = {step["name"]: step["details"] for step in report["steps"]}
    assert details["packages"]["torch"] and details["device"] == {"name": "cpu"}
    assert details["engine_tokens"]["tokens"] == 2 * 6 * 16
    assert report["beside_generate"]["w2"]["times_tokens_per_second"] > 0
    assert "generate's tokens per second" in done.stdout


def test_every_step_has_its_function_and_comes_after_what_it_needs() -> None:
    names = [step.name for step in STEPS]
    assert names == list(gpu_steps.STEPS)
    for place, step in enumerate(STEPS):
        assert set(step.needs) <= set(names[:place])


def run(tmp_path: Path, step: Step, device: str = "cpu") -> Result:
    arguments = [str(tmp_path), device, "tiny", "1"]
    return run_step(step, arguments, dict(os.environ), tmp_path / "out.json")


def test_what_a_step_raises_is_its_fault(tmp_path: Path) -> None:
    result = run(tmp_path, Step("device", 600), device="nonsense")
    assert result.status == "failed" and "nonsense" in result.fault[-1]
    assert any("gpu_steps.py" in line for line in result.fault)


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    result = run(tmp_path, Step("device", 0.0))
    assert (result.status, result.fault[-1]) == ("timed out", "not done after 0 s")


def test_a_process_that_dies_is_a_fault(tmp_path: Path) -> None:
    # No step has this many arguments, so the process ends before it can write anything.
    result = run_step(Step("device", 600), [], dict(os.environ), tmp_path / "out.json")
    assert result.status == "failed" and result.fault[0] == "the process ended with 1"


def test_steps_that_need_a_failed_one_are_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        Step("device", 600),
        Step("checkpoints", 600, ("device",)),
        Step("w2_generate", 1, ("checkpoints",)),
    ]
    results = run_steps(steps, ["nonsense", "tiny", "1"], None, 3000)
    assert [result.status for result in results] == ["failed", "skipped", "skipped"]
    assert results[1].fault == ["needs device"]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ImportError('not here')")
    steps = [Step("packages", 600)]
    environment = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), environment]))
        (result,) = run_steps(steps, ["cpu", "tiny", "1"], None, 3000)
    assert "not installed: msgspec (not here)" in result.fault[-1]


def test_speeds_are_compared_where_both_were_measured() -> None:
    def measured(name: str, speed: float, tokens: list[int]) -> Result:
        return Result(
            name=name, status="passed", details={"tokens_per_second": speed, "first_tokens": tokens}
        )

    results = [
        measured("w2_generate", 10.0, [1]),
        measured("w2_millstream", 25.0, [1]),
        measured("w1_generate", 10.0, [1, 2]),
        Result(name="w1_millstream", status="timed out"),
    ]
    assert beside_generate(results) == {"w2": {"times_tokens_per_second": 2.5, "same_first_tokens": 1.0}}


def test_tokens_that_differ_are_a_fault() -> None:
    with pytest.raises(RuntimeError, match="tiny, prompt 1: token 1 is 4; generate gives 5"):
        gpu_steps._require_equal([[1, 2], [3, 4]], [[1, 2], [3, 5]], "tiny")


def test_bad_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--requests", "0"])
    assert "--requests is 0; allowed: 1 or more" in capsys.readouterr().err
