"""The quality benchmark: what it measures of the bundled model, and what it writes."""

import json
from pathlib import Path

import pytest

from millstream.backends.native import Missing, levels
from millstream.benchmarks.quality import Answers, _compare, main

native_only = pytest.mark.skipif(
    isinstance(levels(), Missing), reason="the native kernels are not built here"
)
SMALL = [
    "--num-prompts",
    "6",
    "--output-len",
    "8",
    "--max-length",
    "256",
    "--max-num-seqs",
    "8",
    "--num-blocks",
    "200",
]


@native_only
def test_the_bundled_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "quality.json"
    assert main([*SMALL, "--output-json", str(file)]) == 0
    report = json.loads(file.read_text())
    none, int8, int4, kv_int8, kv_uint4 = report["rows"]
    assert [row["setting"] for row in report["rows"]] == ["none", "int8", "int4", "kv int8", "kv uint4"]
    assert kv_int8["weights_bytes"] == none["weights_bytes"]
    assert 0 < abs(kv_int8["divergence"]) < abs(kv_uint4["divergence"])
    assert (none["divergence"], none["equal_tokens"], none["equal_outputs"]) == (0, 1, 1)
    assert 1 < none["perplexity"] < 1.3, "the model knows these answers by heart"
    assert none["weights_bytes"] > int8["weights_bytes"] > int4["weights_bytes"]
    assert 0 < abs(int8["divergence"]) < abs(int4["divergence"])
    assert int8["perplexity"] < int4["perplexity"] < 2
    assert int8["equal_tokens"] > 0.8
    assert "environment" in report
    assert len(capsys.readouterr().out.splitlines()) == 6


@native_only
def test_one_quantisation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--quantization", "int8"]) == 0
    assert [line[:18].strip() for line in capsys.readouterr().out.splitlines()[1:]] == [
        "none",
        "int8, kv auto",
    ]


def test_figures() -> None:
    base = Answers(8, [[1, 2, 3], [4, 5, 6]], [[-0.5, -0.5]], [[-1.0], [-2.0, -3.0]])
    found = Answers(4, [[1, 9, 3], [4, 5, 6]], [[-1.0, -1.0]], [[-1.5], [-2.0, -4.0]])
    row = _compare("int8", base, found)
    assert row.perplexity == pytest.approx(2.718281828)
    assert row.divergence == pytest.approx(0.5)
    assert row.equal_tokens == pytest.approx(4 / 6)
    assert row.equal_outputs == 0.5


@pytest.mark.parametrize("flag", ["--num-prompts", "--output-len"])
def test_bad_values(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag, "0"]) == 2
    assert f"{flag} is 0; allowed: 1 or more" in capsys.readouterr().err
