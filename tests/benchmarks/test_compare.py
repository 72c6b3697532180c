"""The comparison: turns, medians, ratios, rows without figures; Millstream and its neighbours for real."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from millstream.benchmarks.compare import environments
from millstream.benchmarks.compare.__main__ import main, measure_workload
from millstream.benchmarks.compare.environments import MODELS, ConvertedModel, Layout, convert
from millstream.benchmarks.compare.measuring import Measurer, uses_prefix_cache, with_best_settings
from millstream.benchmarks.compare.peers import PEERS, Peer, counterparts
from millstream.benchmarks.compare.results import steady_rate
from millstream.benchmarks.compare.runners.protocol import Answer, Outcome
from millstream.benchmarks.compare.table import level_lines, table_lines
from millstream.benchmarks.compare.workloads import Lengths, Workload, make_workloads
from millstream.errors import InvalidArgument, MillstreamError

LENGTHS = Lengths(
    at_once=3,
    input_len=24,
    output_len=6,
    mixed=5,
    mixed_in_flight=2,
    mixed_input=(4, 20),
    mixed_output=(2, 7),
    shared_len=17,
    shared_output_len=3,
)
BY_NAME = {peer.name: peer for peer in PEERS}
OURS, THEIRS, OTHERS = (BY_NAME[name] for name in ("millstream-bf16", "openvino-fp16", "ctranslate2-int8"))


def workload(name: str = "w1") -> Workload:
    return make_workloads(1000, LENGTHS)[name]


def served(given: Workload, seconds: float, token: int = 7) -> Outcome:
    answers = []
    for asked in given.requests:
        steps = max(asked.output_len - 1, 1)
        moments = [seconds * (1 + 3 * step / steps) / 4 for step in range(asked.output_len)]
        answers.append(Answer(0.0, moments, [token] * asked.output_len))
    return Outcome(wall_seconds=seconds, peak_rss_bytes=int(seconds * 1e8), answers=answers)


def test_engines_take_turns_and_medians_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    seconds = {OURS.name: iter([1.0, 9.0, 2.0]), THEIRS.name: iter([4.0, 3.0, 8.0])}

    def measure(peer: Peer, given: Workload) -> Outcome:
        calls.append(peer.name)
        return served(given, next(seconds[peer.name]), token=7 if peer is OURS else len(calls))

    result = measure_workload(workload(), [OURS, THEIRS], {}, 3, measure)
    assert calls == [OURS.name, THEIRS.name] * 3
    ours, theirs = result.rows
    assert ours.figures is not None and theirs.figures is not None and theirs.ratios is not None
    assert (ours.figures.wall_seconds, theirs.figures.wall_seconds) == (2.0, 4.0)
    assert ours.figures.total_tokens_per_second == 3 * 30 / 2.0
    assert ours.figures.prompt_tokens_per_second == 3 * 24 / 2.0
    assert ours.figures.output_tokens_per_second == 3 * 6 / 2.0
    assert ours.figures.mean_ttft_seconds == 0.5
    assert ours.figures.ms_per_output_token == pytest.approx(1000 * 1.5 / 5)
    assert ours.ratios is None and theirs.ours == OURS.name
    assert theirs.ratios.total_tokens_per_second == 2.0
    assert theirs.ratios.mean_ttft_seconds == theirs.ratios.ms_per_output_token == pytest.approx(2.0)
    assert theirs.same_first_tokens == 0.0
    assert [run.wall_seconds for run in theirs.runs] == [4.0, 3.0, 8.0]
    assert "run 3 of 3, openvino-fp16: 8.0 s" in capsys.readouterr().err


def test_a_peer_that_fails_is_a_row_and_is_not_tried_again() -> None:
    calls: list[str] = []

    def measure(peer: Peer, given: Workload) -> Outcome:
        calls.append(peer.name)
        return Outcome(failure="no such kernel") if peer is THEIRS else served(given, 1.0)

    result = measure_workload(workload(), [THEIRS, OURS, OTHERS], {}, 2, measure)
    assert calls == [THEIRS.name, OURS.name, OTHERS.name, OURS.name, OTHERS.name]
    failed, ours, others = result.rows
    assert (failed.figures, failed.ratios, failed.failure) == (None, None, "no such kernel")
    assert ours.failure is None and others.failure is None
    assert others.ratios is None  # Millstream has no int8 row here
    lines = table_lines(result)
    assert lines[2].startswith("OpenVINO GenAI fp16") and lines[2].endswith("  no such kernel")
    assert "90.0" in lines[3]


def test_a_peer_that_fails_later_has_no_figures() -> None:
    outcomes = iter([served(workload(), 1.0), Outcome(failure="killed")])
    result = measure_workload(workload(), [THEIRS], {}, 2, lambda peer, given: next(outcomes))
    assert (result.rows[0].failure, result.rows[0].figures) == ("killed", None)


def test_a_peer_that_leaves_tokens_out_is_not_measured() -> None:
    def measure(peer: Peer, given: Workload) -> Outcome:
        outcome = served(given, 1.0)
        return replace(outcome, answers=[replace(answer, token_ids=[7]) for answer in outcome.answers])

    row = measure_workload(workload(), [THEIRS], {}, 1, measure).rows[0]
    assert row.failure == "request 0 got 1 tokens, but asked for 6" and row.figures is None


def test_a_slow_peer_is_given_less_and_its_row_says_so() -> None:
    result = measure_workload(
        workload(), [OURS, THEIRS], {THEIRS.name: 0.34}, 1, lambda peer, given: served(given, 1.0)
    )
    ours, theirs = result.rows
    assert (ours.num_requests, theirs.num_requests, theirs.num_requests_of) == (3, 1, 3)
    assert theirs.figures is not None and theirs.figures.total_tokens_per_second == 30
    assert theirs.same_first_tokens == 1.0
    lines = table_lines(result)
    assert "1 of 3" in lines[3] and " of " not in lines[2] and "3.00x" in lines[3]


def test_a_row_is_compared_on_the_same_file_or_else_with_the_same_precision() -> None:
    ours = counterparts(PEERS)
    assert ours["llamacpp-q4_0"] == "millstream-gguf-q4_0"
    assert ours["openvino-int8"] == "millstream-int8"
    assert ours["transformers-static"] == "millstream-bf16"
    assert ours.keys() == {peer.name for peer in PEERS if not peer.is_ours}
    assert counterparts([BY_NAME["millstream-int4"], BY_NAME["llamacpp-q4_0"]]) == {
        "llamacpp-q4_0": "millstream-int4"
    }
    assert counterparts([BY_NAME["millstream-gguf-q8_0"], BY_NAME["llamacpp-bf16"]]) == {}


def test_a_peer_is_measured_with_the_best_of_its_settings() -> None:
    bare = BY_NAME["llamacpp-bf16"]
    best = bare.alternatives[0]
    given = make_workloads(1000, replace(LENGTHS, at_once=20))["w1"]
    tried: list[int] = []

    def measure(peer: Peer, few: Workload) -> Outcome:
        tried.append(len(few.requests))
        return served(few, 1.0 if peer.settings == best else 2.0)

    result = measure_workload(given, [bare], {}, 2, measure)
    assert tried == [8, 8, 8, 20, 20]
    assert result.rows[0].settings == best
    failing = with_best_settings(bare, given, lambda peer, few: Outcome(failure="no such file"))
    assert failing.settings == bare.settings


def test_the_steady_rate_counts_each_request_by_its_own_steps() -> None:
    # Two requests, one of them read a little later in each step; the first one began two steps earlier.
    first = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    second = [2.1, 3.1, 4.1, 5.1, 6.1]
    assert steady_rate([first, second]) == pytest.approx(2.0)
    assert steady_rate([[0.0, 1.0], [2.0, 3.0]]) is None
    assert steady_rate([[1.0], [1.0]]) is None


def test_levels_are_shown_side_by_side() -> None:
    workloads = make_workloads(1000, LENGTHS)
    peers = [BY_NAME[name] for name in ("millstream-gguf-q8_0", "llamacpp-q8_0")]

    def measure(peer: Peer, given: Workload) -> Outcome:
        return served(given, 2.0 if peer.is_ours else 1.0)

    results = [measure_workload(workloads[name], peers, {}, 1, measure) for name in ("prefill-8", "decode-8")]
    *_, line = level_lines(results)
    # Outputs begin at a quarter of the time.
    prefill, decode = 8 * 24 / 1.0, 8 * 31 / 0.75
    assert line.split() == [
        *["8", "llama.cpp", "Q8_0,", "bare", "loop", "int8"],
        *[f"{prefill:.1f}", f"{prefill / 2:.1f}", "0.500", f"{decode:.1f}", f"{decode / 2:.1f}", "0.500"],
    ]
    assert level_lines(results[:1])[-1].endswith("0.500" + " " * 27)
    assert level_lines([measure_workload(workloads["w1"], peers, {}, 1, measure)]) == []


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    measure = Measurer(Layout(tmp_path, "tiny"), threads=1, timeout=60)
    w1, warm, off = workload(), workload("w4-warm"), workload("w4-off")
    assert measure(THEIRS, w1).failure == "not installed: no environment openvino"
    assert measure(OURS, w1).failure == "not converted: no model checkpoint of tiny"
    assert measure(OTHERS, warm).failure == "has no prefix cache: see w4-off"
    assert measure(THEIRS, off).failure == "has a prefix cache: see w4-warm and w4-cold"


def test_who_uses_a_prefix_cache() -> None:
    assert [uses_prefix_cache(OURS, workload(name)) for name in ("w1", "w4-cold", "w4-off")] == [
        True,
        True,
        False,
    ]
    assert [uses_prefix_cache(THEIRS, workload(name)) for name in ("w1", "w4-cold")] == [False, True]


def test_every_peer_has_its_runner_its_environment_and_its_model() -> None:
    assert len(BY_NAME) == len(PEERS)
    runners = Path(environments.__file__).parent / "runners"
    for peer in PEERS:
        assert (runners / f"{peer.runner}.py").is_file()
        assert peer.environment is None or peer.environment in environments.ENVIRONMENTS
        assert MODELS[peer.model].environment in (None, peer.environment)


def test_a_broken_converter_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(layout: Layout, out: Path) -> None:
        out.mkdir()
        raise MillstreamError("disk full")

    monkeypatch.setitem(MODELS, "dashinfer", ConvertedModel(environment="dashinfer", convert=write_half))
    layout = Layout(tmp_path, "tiny")
    with pytest.raises(MillstreamError, match="disk full"):
        convert(layout, "dashinfer")
    assert list(layout.models.iterdir()) == []


def test_an_environment_that_cannot_be_made_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments.sys, "executable", "/bin/false")
    folder = tmp_path / "peers"
    assert environments.main([str(folder), "--shape", "tiny", "--only", "dashinfer"]) == 1
    assert "environment dashinfer ... failed: false ended with 1" in capsys.readouterr().out
    assert not (folder / "environments").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf")
    made = tmp_path_factory.mktemp("peers")
    assert environments.main([str(made), "--shape", "tiny", "--only", "millstream"]) == 0
    return made


@pytest.fixture
def measure(folder: Path) -> Callable[[Peer, Workload], Outcome]:
    return Measurer(Layout(folder, "tiny"), threads=1, timeout=120)


def served_by(measure: Callable[[Peer, Workload], Outcome], name: str, given: Workload) -> list[list[int]]:
    outcome = measure(BY_NAME[name], given)
    assert outcome.failure is None, outcome.failure
    assert outcome.peak_rss_bytes > 10_000_000 and outcome.load_seconds > 0 and outcome.versions
    assert all(0 <= answer.handed_over < answer.first for answer in outcome.answers)
    return [answer.token_ids for answer in outcome.answers]


@pytest.mark.parametrize("name", ["w3", "w4-warm"])
def test_millstream_llamacpp_and_transformers_serve_the_same(
    name: str, measure: Callable[[Peer, Workload], Outcome]
) -> None:
    pytest.importorskip("llama_cpp")
    given = workload(name)
    lengths = [asked.output_len for asked in given.requests]
    peers = ["millstream-bf16", "millstream-gguf-bf16", "llamacpp-bf16", "transformers-continuous"]
    outputs = {peer: served_by(measure, peer, given) for peer in peers}
    for peer in peers:
        assert [len(token_ids) for token_ids in outputs[peer]] == lengths
        firsts = [token_ids[0] for token_ids in outputs[peer]]
        assert firsts == [token_ids[0] for token_ids in outputs["millstream-bf16"]]


def test_transformers_generate_pads_and_serves(measure: Callable[[Peer, Workload], Outcome]) -> None:
    given = workload("w3")
    static = served_by(measure, "transformers-static", given)
    assert [len(token_ids) for token_ids in static] == [asked.output_len for asked in given.requests]
    ours = served_by(measure, "millstream-bf16", given)
    assert [token_ids[0] for token_ids in static] == [token_ids[0] for token_ids in ours]


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    peers = ["--peers", "millstream-bf16", "transformers-static", "openvino-int8"]
    flags = [
        "--shape",
        "tiny",
        "--workloads",
        "w2",
        "--runs",
        "1",
        "--threads",
        "1",
        "--output-json",
        str(out),
    ]
    assert main([str(folder), *flags, *peers]) == 0
    report = json.loads(out.read_text())
    rows = {row["name"]: row for row in report["workloads"][0]["rows"]}
    assert rows["openvino-int8"]["failure"] == "not installed: no environment openvino"
    assert rows["transformers-static"]["ratios"]["total_tokens_per_second"] > 0
    assert rows["millstream-bf16"]["versions"]["torch"]
    assert (report["shape"], report["threads"], report["command"][-3:]) == ("tiny", 1, peers[1:])
    assert report["environment"]["cpu"]
    printed = capsys.readouterr().out
    assert "w2: one request of 512+128 tokens" in printed and "no environment openvino" in printed


def test_an_engine_beside_its_kernels_without_any_other_peer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    peers = ["--peers", "millstream-gguf-q8_0", "llamacpp-q8_0"]
    flags = ["--shape", "tiny", "--workloads", "prefill-1", "decode-1", "--runs", "1", "--threads", "1"]
    assert main([str(folder), *flags, *peers]) == 0
    printed = capsys.readouterr()
    last = printed.out.splitlines()[-1].split()
    assert last[0] == "1" and all(float(cell) > 0 for cell in last[-6:])
    assert "decode-1, run 1 of 1, millstream-gguf-q8_0" in printed.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", "0"], "--runs is 0; allowed: 1 or more"),
        (["--threads", "-1"], "--threads is -1; allowed: 0 or more"),
        (["--timeout", "0"], "--timeout is 0.0; allowed: seconds above 0"),
        (["--requests-scale", "2"], "above 0, at most 1"),
        (["--peer-scale", "dashinfer=0"], "the scale of dashinfer is 0.0"),
        (["--peer-scale", "nobody=1"], "'nobody' is no peer"),
        (["--peer-scale", "dashinfer"], "is no NAME=SHARE"),
        (["--shape", "nothing"], "--shape is 'nothing'"),
        (["--peers", "nobody"], "invalid choice: 'nobody'"),
    ],
)
def test_bad_flags(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"qwen2-0\.5b"):
        Layout(tmp_path, "nothing")
