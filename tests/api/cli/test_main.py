"""The command line as a whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import millstream
from millstream.api.cli.main import main
from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import write_checkpoint


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"millstream {millstream.__version__}\n"


@pytest.mark.parametrize(
    "argv", [[], ["frobnicate"], ["generate", "--frobnicate"], ["run", "--requests", "0"]]
)
def test_bad_command_lines(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err


@pytest.mark.parametrize("command", ["serve", "run", "generate", "chat", "models", "doctor"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"millstream {command}" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["generate", "--temperature", "-1", "--model", str(tmp_path), "hi"]) == 2
    assert main(["generate", "--input", str(tmp_path / "no.jsonl")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert str(tmp_path / "no.jsonl") in errors[1]


@pytest.mark.torch
def test_generate_with_a_torch_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny", SHAPES["tiny"])
    argv = ["generate", "--model", str(tmp_path / "tiny"), "--json", "--max-new-tokens", "3", "--ignore-eos"]
    assert main([*argv, "--max-length", "64", "--threads", "1", "hello"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["outputs"][0]["output_tokens"] == 3
    assert row["outputs"][0]["text"]


def test_nothing_heavy_is_imported_before_a_model_is_loaded() -> None:
    program = (
        "import sys; from millstream.api.cli.main import main; main(['generate', '--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'tokenizers', 'huggingface_hub'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
