"""The busy command: its processes compute and end, and its figures are what was measured."""

import json
from pathlib import Path

import psutil
import pytest

from millstream.backends.fake import FakeBackend
from millstream.benchmarks import busy
from millstream.benchmarks.busy import BusyFigure, ThreadsFigure, busy_processes
from millstream.engine import ModelConfig


def test_busy_processes_compute_until_the_block_ends() -> None:
    with busy_processes(2) as processes:
        before = [process.cpu_times().user for process in processes]
        while not all(p.cpu_times().user > b for p, b in zip(processes, before, strict=True)):
            pass
    assert not any(psutil.pid_exists(process.pid) for process in processes)


def test_they_end_with_an_error_too() -> None:
    with pytest.raises(RuntimeError), busy_processes(1) as processes:
        raise RuntimeError
    assert not psutil.pid_exists(processes[0].pid)


def test_the_report_has_each_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = FakeBackend(eos_token_ids=tuple(range(0, 1000, 2)))
    config = ModelConfig(model="fake", backend=backend, max_length=100, num_blocks=200)
    monkeypatch.setattr(busy, "model_config", lambda options, **defaults: config)
    out = tmp_path / "report.json"
    flags = ["--input-len", "8", "--output-len", "4", "--runs", "1", "--busy", "1", "--output-json", str(out)]
    assert busy.main(["--model", "fake", "--num-threads", "1", "0", *flags]) == 0
    written = json.loads(out.read_text())
    assert [figure["threads"] for figure in written["figures"]] == [1, 0]
    for figure in written["figures"]:
        (beside,) = figure["beside"]
        assert beside["ratio"] == pytest.approx(beside["seconds"] / figure["quiet_seconds"])
        assert beside["fair_ratio"] == max(1, 2 / written["cores"])
        assert beside["cost"] == pytest.approx(beside["ratio"] / beside["fair_ratio"])
    said = capsys.readouterr().out
    assert "threads 1: " in said
    assert "threads auto: " in said
    assert said.count("  beside 1 busy processes: ") == 2


def test_a_line_tells_the_threads_of_each_size_of_steps() -> None:
    beside = BusyFigure(busy=8, seconds=5, ratio=5, fair_ratio=5, cost=1, share_cost=1)
    figure = ThreadsFigure(threads=0, quiet_seconds=1, step_threads={2: 1, 512: 2}, beside=[beside])
    assert figure.lines() == [
        "threads auto: 1.000 s quiet (by tokens in a step: 1 up to 2, 2 up to 512)",
        "  beside 8 busy processes: 5.000 s, 5.00 times as long; fair: 5.00; "
        "cost 1.00, by shares of CPU 1.00",
    ]


@pytest.mark.parametrize("flag", ["--num-threads=-1", "--busy=0", "--runs=0"])
def test_senseless_numbers_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert busy.main(["--model", "fake", flag]) != 0
    assert flag.partition("=")[0] in capsys.readouterr().err
