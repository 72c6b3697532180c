"""What `doctor` says."""

from pathlib import Path

import pytest

from millstream.api.cli import doctor
from millstream.api.cli.doctor import describe_hardware, describe_kernels, describe_plan
from millstream.api.cli.main import main
from millstream.backends.machine.hardware import Gpu, Hardware, MemoryLimit
from millstream.backends.native import Missing
from millstream.engine import MemoryPlan

GIB = 1 << 30


def test_hardware_in_words() -> None:
    hardware = Hardware(
        physical_cores=6,
        memory=MemoryLimit(8 * GIB, GIB, "cgroup v2 /x"),
        cpu_features=frozenset({"avx2"}),
        compiler=Path("/usr/bin/c++"),
        gpus=(Gpu(index=0, name="Big GPU", memory_bytes=80 * GIB, driver="1.2"),),
    )
    text = "\n".join(describe_hardware(hardware))
    for part in (
        "6 physical",
        "8.00 GiB (cgroup v2 /x)",
        "1.00 GiB of it in use",
        "avx2",
        "Big GPU, 80.00 GiB",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("level", "sentence"),
    [
        ("avx2", "native, level avx2"),
        (Missing("not built: no compiler"), "plain torch; the native kernels are not built: no compiler"),
    ],
)
def test_kernels_in_words(level: str | Missing, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "best_level", lambda: level)
    hardware = Hardware(
        physical_cores=1,
        memory=MemoryLimit(GIB, 0, "machine"),
        cpu_features=frozenset(),
        compiler=None,
        gpus=(),
    )
    assert list(describe_kernels(hardware)) == [f"kernels           {sentence}", "C++ compiler      none"]


def test_plan_in_words() -> None:
    plan = MemoryPlan(
        limit_bytes=10 * GIB,
        used_bytes=GIB,
        source="machine",
        memory_fraction=0.5,
        weights=2 * GIB,
        activations=GIB,
        kv_per_block=GIB // 100,
        block_size=16,
        num_blocks=100,
        max_length=800,
        cache_grows=True,
    )
    text = "\n".join(describe_plan(plan, max_num_seqs=64))
    for part in (
        "4.00 GiB in all; 5.00 GiB may be used",
        "2.00 GiB for the weights",
        "1,600 tokens, taken as they are used",
        "2 of them",
    ):
        assert part in text


@pytest.mark.torch
def test_the_command_lists_packages_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for title in ("millstream", "torch", "cores", "memory", "kernels"):
        assert f"\n{title} " in printed


@pytest.mark.torch
def test_an_unknown_model_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "./no/such/folder"]) == 2
    assert "./no/such/folder" in capsys.readouterr().err


@pytest.mark.torch
def test_a_forced_level_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "forced_level", lambda: "avx2")
    assert main(["doctor"]) == 0
    shown = "CPU level         avx2, forced by MILLSTREAM_CPU_LEVEL; llama.cpp runs as compiled"
    assert shown in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("MILLSTREAM_CPU_LEVEL", "mmx")
    assert main(["doctor"]) == 2
    assert "MILLSTREAM_CPU_LEVEL is 'mmx'; allowed: generic" in capsys.readouterr().err
