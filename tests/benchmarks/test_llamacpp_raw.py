"""The comparison with a bare llama.cpp loop: both serve, and the report says what was measured."""

import json
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.benchmarks.bare_llamacpp import BareSetting, measure_bare
from millstream.benchmarks.llamacpp_raw import Case, main, measure_engine, measure_shared_prefix
from millstream.errors import MillstreamError

PYHELP = BUNDLED_MODELS["pyhelp-bf16"]


def make_case(**changes: int) -> Case:
    lengths = {"sequences": 3, "input_len": 24, "output_len": 6, **changes}
    return Case(path=PYHELP, vocab_size=4096, threads=1, **lengths)


@pytest.mark.parametrize(
    "setting",
    [BareSetting(512, 512), BareSetting(24, 24), BareSetting(16, 8), BareSetting(512, 512, unified=True)],
)
def test_the_bare_loop_serves(setting: BareSetting) -> None:
    speeds = measure_bare(PYHELP, make_case().prompts(), 6, 1, setting)
    assert speeds.prefill > 0 and speeds.decode > 0


def test_prompts_are_the_same_in_every_process_and_begin_alike() -> None:
    case = make_case(shared_len=16)
    prompts = case.prompts()
    assert prompts == make_case(shared_len=16).prompts()
    assert [len(prompt) for prompt in prompts] == [24] * 3
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 1
    assert len({tuple(prompt[16:]) for prompt in prompts}) == 3


def test_the_engine_is_measured() -> None:
    speeds = measure_engine(make_case(output_len=60))
    assert speeds.prefill > 0 and speeds.decode > 0
    assert measure_shared_prefix(make_case(shared_len=16), cache=True) > 0


def test_too_few_outputs_to_measure_are_said() -> None:
    with pytest.raises(MillstreamError, match="take a longer --output-len"):
        measure_engine(make_case(sequences=2, output_len=1))


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    flags = ["--threads", "1", "--sequences", "1", "--input-len", "16", "--output-len", "4", "--runs", "1"]
    assert main(["--model", "pyhelp-bf16", *flags, "--output-json", str(out)]) == 0
    level = json.loads(out.read_text())["levels"][0]
    assert level["sequences"] == 1
    assert level["decode_ratio"] == pytest.approx(level["engine_decode"] / level["bare_decode"])
    assert f"{level['bare_prefill']:.1f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sequences", "0"], "--sequences is 0"),
        (["--output-len", "2"], "--output-len is 2; allowed: 3 or more"),
        (["--input-len", "4000"], "the model's context"),
        (["--shared-prefix", "--shared-len", "512"], "--shared-len is 512; allowed: 1 to 511"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "pyhelp-bf16", *flags]) != 0
    assert message in capsys.readouterr().err
