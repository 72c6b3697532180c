"""The throughput and latency commands, on the fake worker."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from millstream.api.cli.running import run_async
from millstream.backends.fake import CharacterTokenizer, FakeBackend
from millstream.benchmarks import latency, throughput
from millstream.benchmarks.datasets import Prompt
from millstream.benchmarks.environment import write_report
from millstream.benchmarks.throughput import Outcome, report, serve, serve_async
from millstream.benchmarks.workload import Workload, make_workload
from millstream.engine import AsyncEngine, Engine, ModelConfig
from millstream.errors import InvalidArgument, MillstreamError
from millstream.scheduler import Batch

CONFIG = ModelConfig(
    model="fake", backend=FakeBackend(eos_token_ids=tuple(range(0, 1000, 2))), max_length=100, num_blocks=200
)
WORKLOAD = Workload(prompts=[Prompt([1, 2, 3], 4), Prompt([4, 5], 6)], n=2)


def parse(*argv: str) -> Namespace:
    return throughput._parser().parse_args(["--model", "m", *argv])


def workload(*argv: str) -> Workload:
    return make_workload(parse(*argv), CharacterTokenizer(1000), 1000)


def check(outcome: Outcome) -> None:
    measured = report(WORKLOAD, outcome, {})
    assert (measured.num_requests, measured.prompt_tokens, measured.output_tokens) == (2, 5, 20)
    assert measured.total_num_tokens == 25
    assert measured.tokens_per_second == pytest.approx(25 / outcome.seconds)
    assert measured.lines()[0] == (
        f"Throughput: {2 / outcome.seconds:.2f} requests/s, {25 / outcome.seconds:.2f} total tokens/s, "
        f"{20 / outcome.seconds:.2f} output tokens/s"
    )
    assert measured.lines()[1:3] == ["Total num prompt tokens:  5", "Total num output tokens:  20"]


def test_every_token_is_counted_once() -> None:
    with Engine() as engine:
        engine.install_model(CONFIG)
        engine.start_model("fake")
        samples: list[int] = []
        check(serve(engine, "fake", WORKLOAD, samples.append))
        assert samples == [1, 1, 1, 1]


def test_the_async_engine_is_measured_in_the_same_way() -> None:
    async def main() -> None:
        async with AsyncEngine() as engine:
            await engine.install_model(CONFIG)
            await engine.start_model("fake")
            check(await serve_async(engine, "fake", WORKLOAD))

    run_async(main())


def test_a_request_that_fails_spoils_the_measurement() -> None:
    def fail(batch: Batch) -> None:
        if batch.chunks:
            raise RuntimeError("out of ink")

    config = ModelConfig(
        model="fake", backend=FakeBackend(on_batch=fail), max_length=100, num_blocks=200, warmup=False
    )
    with Engine() as engine:
        engine.install_model(config)
        engine.start_model("fake")
        outcome = serve(engine, "fake", WORKLOAD)
        with pytest.raises(MillstreamError, match="out of ink"):
            report(WORKLOAD, outcome, {})


def test_without_detokenising_there_is_no_text() -> None:
    with Engine() as engine:
        engine.install_model(CONFIG)
        engine.start_model("fake")
        for detokenize in (True, False):
            made = Workload(prompts=WORKLOAD.prompts, detokenize=detokenize)
            outcome = serve(engine, "fake", made)
            elements = outcome.streams[0].get_nowait()
            assert len(elements.token_ids) == 4
            assert bool(elements.text) is detokenize


def test_flags_become_prompts() -> None:
    made = workload("--input-len", "12", "--num-prompts", "3", "--prefix-len", "4", "--n", "2")
    assert [len(prompt.token_ids) for prompt in made.prompts] == [16] * 3
    assert [prompt.output_len for prompt in made.prompts] == [128] * 3
    assert made.n == 2
    repeated = workload(
        "--dataset-name",
        "prefix-repetition",
        *("--prefix-repetition-prefix-len", "6", "--prefix-repetition-suffix-len", "2"),
        *("--prefix-repetition-num-prefixes", "2", "--prefix-repetition-output-len", "3"),
        *("--num-prompts", "4"),
    )
    assert [(len(prompt.token_ids), prompt.output_len) for prompt in repeated.prompts] == [(8, 3)] * 4


def test_a_path_alone_means_sharegpt(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    turns = [{"value": "a question"}, {"value": "an answer"}]
    path.write_text(json.dumps([{"conversations": turns}]))
    assert workload("--dataset-path", str(path), "--num-prompts", "2").prompts[0].output_len == 9


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        ([], "--input-len"),
        (["--dataset-name", "custom"], "--dataset-path"),
        (["--dataset-name", "custom", "--input-len", "3"], "--input-len"),
        (["--dataset-name", "sharegpt", "--prefix-len", "3"], "--prefix-len"),
        (["--dataset-name", "prefix_repetition", "--output-len", "3"], "--output-len"),
        (["--input-len", "3", "--prefix-repetition-prefix-len", "3"], "--prefix-repetition-prefix-len"),
        (["--input-len", "3", "--num-prompts", "0"], "--num-prompts"),
        (["--input-len", "3", "--n", "0"], "--n"),
        (["--input-len", "3", "--seed", "-1"], "--seed"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_refused(argv: list[str], flag: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        workload(*argv)
    assert caught.value.parameter == flag


def test_unknown_flags_and_models_end_the_command() -> None:
    assert throughput.main(["--model", "m", "--lora-path", "x"]) == 2
    assert throughput.main(["--model", "./no/such/folder", "--input-len", "3"]) == 2
    assert latency.main(["--model", "./no/such/folder"]) == 2
    assert latency.main(["--model", "m", "--num-iters", "0"]) == 2
    assert latency.main(["--model", "m", "--prefix-cache", "--no-prefix-cache"]) == 2


def test_latencies_are_summarised() -> None:
    options = latency._parser().parse_args(["--model", "m"])
    measured = latency.summarise([float(second) for second in range(1, 101)], options)
    assert measured.avg_latency == pytest.approx(50.5)
    assert measured.percentiles[50] == pytest.approx(50.5)
    assert list(measured.percentiles) == [10, 25, 50, 75, 90, 99]
    assert measured.lines()[0] == "Avg latency: 50.5 seconds"
    assert measured.lines()[-1].startswith("99% percentile latency: 99.0")


def test_a_report_says_where_it_was_made(tmp_path: Path) -> None:
    with Engine() as engine:
        engine.install_model(CONFIG)
        engine.start_model("fake")
        measured = report(WORKLOAD, serve(engine, "fake", WORKLOAD), {"model": "fake"})
    write_report(tmp_path / "out.json", measured)
    written: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert {
        "elapsed_time",
        "num_requests",
        "total_num_tokens",
        "requests_per_second",
        "tokens_per_second",
    } <= (written.keys())
    environment = written["environment"]
    assert environment["cpu"]
    assert environment["physical_cores"] >= 1
    assert environment["versions"]["millstream"]
    assert "commit" in environment


def test_the_token_is_not_reported() -> None:
    arguments = throughput._arguments(parse("--input-len", "3", "--token", "secret"))
    assert "secret" not in json.dumps(arguments)
    assert arguments["input_len"] == 3
