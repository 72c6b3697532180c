"""OpenAI's batch files through `generate`: requests, answers, refusals, and a run that goes on."""

import json

import pytest

from millstream.api.cli.generate import GenerateTask
from millstream.api.cli.main import main
from millstream.api.cli.running import run_async
from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FAKE_EMBEDDING_SIZE, FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.engine import ModelConfig

CHAT = "/v1/chat/completions"


def line(custom_id, url=CHAT, method="POST", **body):
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def said(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def answer(tmp_path):
    """Answers lines with the fake model; returns the exit status and the results by custom_id."""

    def run(*lines, **options):
        backend = options.pop("backend", None) or FakeBackend(
            vocab_size=4096, tokenizer=HFTokenizer.from_folder(PYHELP)
        )
        given, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in lines))
        config = ModelConfig(model="m", backend=backend, max_length=256, num_blocks=400)
        task = GenerateTask(config=config, input=str(given), output=output, sampling={}, **options)
        status = run_async(task.run())
        return status, [json.loads(row) for row in output.read_text().splitlines()]

    return run


def test_answers_are_those_of_the_routes(answer):
    status, results = answer(
        line("chat", messages=said("hi"), max_tokens=3, ignore_eos=True),
        line("text", "/v1/completions", model="m", prompt="def", max_tokens=2, ignore_eos=True),
    )
    found = {row["custom_id"]: row for row in results}
    assert status == 0
    for row in results:
        assert row.keys() == {"id", "custom_id", "response", "error"}
        assert row["id"].startswith("batch_req_") and row["error"] is None
        assert row["response"]["status_code"] == 200 and row["response"]["request_id"]
    chat, text = found["chat"]["response"]["body"], found["text"]["response"]["body"]
    assert (chat["object"], chat["model"], chat["usage"]["completion_tokens"]) == ("chat.completion", "m", 3)
    assert (text["object"], text["usage"]["completion_tokens"]) == ("text_completion", 2)


def test_embeddings(answer):
    backend = FakeBackend(generates=False, tokenizer=HFTokenizer.from_folder(PYHELP), vocab_size=4096)
    status, (row,) = answer(line("e", "/v1/embeddings", input=["a", "b"]), backend=backend)
    assert status == 0
    vectors = [entry["embedding"] for entry in row["response"]["body"]["data"]]
    assert [len(vector) for vector in vectors] == [FAKE_EMBEDDING_SIZE] * 2


def test_a_refusal_is_an_answer_and_a_wrong_line_an_error(answer):
    status, results = answer(
        line("field", messages=said("hi"), temprature=1),
        line("model", model="gpt", messages=said("hi")),
        line("url", "/v1/images"),
        line("method", method="GET"),
        line("stream", messages=said("hi"), stream=True),
        {"url": CHAT, "method": "POST", "body": {}},
        {**line("more"), "extra": 1},
        line("twice", messages=said("hi"), max_tokens=1),
        line("twice", messages=said("hi"), max_tokens=1),
    )
    assert status == 1
    found = {row["custom_id"]: row for row in results if row["custom_id"]}
    for name, code, told in (("field", 400, "did you mean temperature"), ("model", 404, "'gpt'")):
        response = found[name]["response"]
        assert response["status_code"] == code and found[name]["error"] is None
        assert told in response["body"]["error"]["message"]
    for name, told in (
        ("url", "/v1/images"),
        ("method", "'GET'"),
        ("stream", "stream is true"),
        ("more", "extra is no field"),
    ):
        assert found[name]["response"] is None
        assert found[name]["error"]["code"] == "invalid_line"
        assert told in found[name]["error"]["message"]
    assert found["twice"]["response"]["status_code"] == 200
    nameless = sorted(row["error"]["message"] for row in results if row["custom_id"] is None)
    assert nameless == ["custom_id 'twice' occurs twice", "custom_id is None; allowed: a string"]


def test_a_run_goes_on_where_one_was_broken_off(answer):
    good, bad = line("a", messages=said("hi"), max_tokens=1), line("b", messages=said("hi"), max_tokens=0)
    _, first = answer(good, bad, {"url": CHAT})
    status, second = answer(good, bad, {"url": CHAT}, retry_failed=True)
    assert status == 1 and len(first) == len(second) == 3
    same = [[row for row in rows if row["custom_id"] == "a"] for rows in (first, second)]
    assert same[0] == same[1]
    again = [[row["id"] for row in rows if row["custom_id"] == "b"] for rows in (first, second)]
    assert again[0] != again[1]


def test_flags_that_bodies_say_are_refused_before_a_model_is_loaded(tmp_path, capsys):
    rows = tmp_path / "in.jsonl"
    rows.write_text(json.dumps(line("a", messages=said("hi"))) + "\n")
    given = (("--temperature", "0", "temperature is 0.0"), ("--system", "x", "--system is 'x'"))
    for flag, value, told in given:
        assert main(["generate", str(tmp_path / "nowhere"), "--input", str(rows), flag, value]) == 2
        assert f"{told}; allowed: nothing with OpenAI's batch format" in capsys.readouterr().err
