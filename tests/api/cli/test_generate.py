"""`generate`, on the fake worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millstream.api.cli.batch_file import InputRow, ResultRow
from millstream.api.cli.completer import Completer, complete_rows
from millstream.api.cli.generate import GenerateTask
from millstream.api.cli.main import main
from millstream.api.cli.running import PromptMaker, run_async, running_model
from millstream.api.handlers import ModelHandler
from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.engine import ModelConfig
from millstream.errors import InvalidArgument, NotSupported


def config(**settings: Any) -> ModelConfig:
    return ModelConfig(model="fake", backend=FakeBackend(**settings), max_length=200, num_blocks=100)


def run(tmp_path: Path, rows: list[object], **settings: Any) -> tuple[int, list[dict[str, Any]]]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = GenerateTask(
        config=config(),
        input=str(source),
        output=target,
        sampling={"max_new_tokens": 4, "temperature": 0, **settings.pop("sampling", {})},
        **settings,
    )
    status = run_async(task.run())
    return status, [json.loads(line) for line in target.read_text().splitlines()]


def test_rows_are_completed_and_failures_stay_alone(tmp_path: Path) -> None:
    status, results = run(
        tmp_path,
        [
            {"prompt": "hello", "label": 1},
            {"prompt": [1, 2, 3], "params": {"n": 2, "max_new_tokens": 2}},
            {"prompt": "x" * 500},
            {"prompt": "", "custom_id": "empty"},
            {"messages": [{"role": "user", "content": "no template"}]},
        ],
    )
    assert status == 1
    by_index = {result["index"]: result for result in results}
    assert sorted(by_index) == [0, 1, 2, 3, 4]
    assert by_index[0]["outputs"][0]["output_tokens"] == 4
    assert by_index[0]["outputs"][0]["finish_reason"] == "length"
    assert len(by_index[0]["outputs"][0]["text"]) == 4
    assert by_index[0]["extra"] == {"label": 1}
    assert [output["output_tokens"] for output in by_index[1]["outputs"]] == [2, 2]
    assert by_index[1]["prompt_tokens"] == 3
    assert "max_length 200" in by_index[2]["error"]
    assert by_index[3]["custom_id"] == "empty"
    assert "at least one token" in by_index[3]["error"]
    assert "no chat template" in by_index[4]["error"]


def test_a_second_run_does_only_what_is_left(tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"row {number}"} for number in range(6)]
    _, before = run(tmp_path, rows[:4])
    kept = (tmp_path / "out.jsonl").read_text()
    status, after = run(tmp_path, rows)
    assert status == 0
    assert (tmp_path / "out.jsonl").read_text().startswith(kept)
    assert sorted(row["index"] for row in after[len(before) :]) == [4, 5]


def test_failed_rows_are_done_again_only_when_asked(tmp_path: Path) -> None:
    run(tmp_path, [{"prompt": ""}, {"prompt": "fine"}])
    status, results = run(tmp_path, [{"prompt": "better"}, {"prompt": "fine"}])
    assert (status, len(results)) == (0, 2)
    assert results[0]["error"] or results[1]["error"]
    status, results = run(tmp_path, [{"prompt": "better"}, {"prompt": "fine"}], retry_failed=True)
    assert [row["error"] for row in results] == [None, None]


def test_logprobs_are_written_where_asked_for(tmp_path: Path) -> None:
    _, results = run(
        tmp_path, [{"prompt": "hello"}], sampling={"logprobs": True, "top_logprobs": 1, "prompt_logprobs": 0}
    )
    (output,) = results[0]["outputs"]
    assert len(output["logprobs"]) == len(output["top_logprobs"]) == 4
    assert results[0]["prompt_logprobs"][0] is None
    assert len(results[0]["prompt_logprobs"]) == 5


def test_no_more_rows_are_taken_than_may_be_under_way() -> None:
    taken = 0
    written: list[ResultRow] = []
    most = 0

    def rows() -> Iterator[InputRow]:
        nonlocal taken
        for index in range(20):
            taken += 1
            yield InputRow(index=index, prompt=f"row {index}")

    def write(row: ResultRow) -> None:
        nonlocal most
        most = max(most, taken - len(written))
        written.append(row)

    async def main() -> None:
        async with running_model(config()) as model:
            maker = PromptMaker(model.handler, chat=None, system=None)
            completer = Completer(model, maker, {"max_new_tokens": 3})
            await complete_rows(completer, rows(), write, 4)

    run_async(main())
    assert sorted(row.index for row in written) == list(range(20))
    assert most <= 4


def test_a_failure_to_write_ends_the_run_and_writes_nothing_more() -> None:
    written: list[ResultRow] = []

    def write(row: ResultRow) -> None:
        written.append(row)
        raise OSError(28, "No space left on device", "out.jsonl")

    async def main() -> None:
        async with running_model(config(step_time=0.002)) as model:
            completer = Completer(
                model, PromptMaker(model.handler, chat=None, system=None), {"max_new_tokens": 3}
            )
            rows = (InputRow(index=index, prompt="x" * (index + 1)) for index in range(50))
            await complete_rows(completer, rows, write, 1)

    with pytest.raises(OSError, match="No space left"):
        run_async(main())
    assert len(written) == 1


def test_prompts_are_printed_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    task = GenerateTask(
        config=config(), prompts=("one", "two"), sampling={"max_new_tokens": 3, "temperature": 0}
    )
    assert run_async(task.run()) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "==> one <=="
    assert len(lines[1]) == 3
    assert lines[3] == "==> two <=="
    assert lines[5:] == [""]


def test_one_prompt_is_printed_bare(capsys: pytest.CaptureFixture[str]) -> None:
    task = GenerateTask(
        config=config(), prompts=("one",), sampling={"max_new_tokens": 3, "temperature": 0}, stats=True
    )
    assert run_async(task.run()) == 0
    printed = capsys.readouterr()
    assert len(printed.out) == 4
    assert "3 output tokens" in printed.err


def test_prompts_can_be_printed_as_rows(capsys: pytest.CaptureFixture[str]) -> None:
    task = GenerateTask(config=config(), prompts=("one",), json=True, sampling={"max_new_tokens": 3})
    run_async(task.run())
    assert json.loads(capsys.readouterr().out)["outputs"][0]["output_tokens"] == 3


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({}, "PROMPT"),
        ({"prompts": ("a",), "input": "x"}, "PROMPT"),
        ({"prompts": ("a",), "concurrency": 4}, "--concurrency"),
        ({"input": "-", "concurrency": 0}, "--concurrency"),
        ({"input": "x", "output": Path("x")}, "--output"),
        ({"input": "-", "retry_failed": True}, "--retry-failed"),
        ({"prompts": ("a",), "system": "s", "chat": False}, "--system"),
        ({"prompts": ("a",), "sampling": {"logprobs": True}}, "--logprobs"),
    ],
)
def test_flags_that_do_not_go_together(settings: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        GenerateTask(config=config(), **{"sampling": {}, **settings})
    assert caught.value.parameter == parameter


def test_the_chat_template_is_used_where_there_is_one() -> None:
    info = FakeBackend().inspect("fake", Path("fake"))
    plain = FakeBackend().load_tokenizer(info)
    handler = ModelHandler(info, plain)
    assert PromptMaker(handler, chat=None, system=None).from_text("hi") == plain.encode("hi")
    with pytest.raises(NotSupported):
        PromptMaker(handler, chat=True, system=None).from_text("hi")
    with pytest.raises(NotSupported):
        PromptMaker(handler, chat=None, system="be brief").from_text("hi")

    chatty = HFTokenizer.from_folder(PYHELP)
    handler = ModelHandler(info, chatty)
    text = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    maker = PromptMaker(handler, chat=None, system="be brief")
    assert maker.from_text("hi") == chatty.encode(text, add_special_tokens=False)
    assert PromptMaker(handler, chat=False, system=None).from_text("hi") == chatty.encode("hi")
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "hi"}]
    assert maker.from_messages(own) == chatty.encode(
        text.replace("be brief", "mine"), add_special_tokens=False
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--output", "{tmp}"], "--output is '{tmp}'; allowed: a file in a folder that is there"),
        (["--output", "{tmp}/no/out.jsonl"], "a file in a folder that is there"),
        (["--input", "{tmp}/no.jsonl"], "{tmp}/no.jsonl: No such file"),
        (["hi", "--temperature", "-1"], "temperature is -1.0; allowed: 0 (greedy) to 100"),
        (["hi", "--max-tokens", "0"], "max_new_tokens is 0"),
        (["hi", "--top-logprobs", "2", "--json"], "top_logprobs is 2; allowed: 0 unless logprobs is True"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_looked_for(flags, told, tmp_path, capsys) -> None:
    argv = [flag.format(tmp=tmp_path) for flag in flags]
    prompts = [] if "hi" in argv or "--input" in argv else ["hi"]
    assert main(["generate", "--model", str(tmp_path / "nowhere"), *prompts, *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told.format(tmp=tmp_path) in line
