"""`millstream serve` as a user starts it: its models, keys, answers, end and refusals."""

import json
import os

import pytest

from millstream.api.cli.main import main

from ...sse import stream_events
from ..server_process import ServerProcess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX'")
SMALL = ("--max-length", "1024", "--num-blocks", "256", "--threads", "1")


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **variables):
        own = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}
        arguments = ("-m", "millstream", "serve", *arguments)
        servers.append(ServerProcess(*arguments, env={**own, **variables}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.torch
def test_it_serves_the_bundled_model_and_streams_outlive_a_signal(serve):
    server = serve("--port", "0", *SMALL)
    url = server.wait_until_ready()
    assert not url.endswith(":0")
    question = [{"role": "user", "content": "What does os.path.join do?"}]
    with server.client() as http, server.client() as other:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["pyhelp"]
        answer = http.post("/v1/chat/completions", json={"messages": question, "temperature": 0}).json()
        assert answer["choices"][0]["message"]["content"].startswith("os.path.join: Join two or more")

        body = {"prompt": "def", "max_tokens": 900, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            stream = stream_events(response)
            next(stream)
            server.signal()
            server.wait_for("waiting up to")
            refused = other.post("/v1/completions", json={"prompt": "def"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            *_, last, done = stream
    assert done == "[DONE]" and json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert server.end() == 0
    assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.torch
def test_two_models_under_names_and_keys_from_a_file(serve, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {name: alice, key: ka, weight: 2}\n- {name: bob, key: kb}\n")
    server = serve("one=pyhelp", "two=pyhelp", "--api-keys", str(keys), "--port", "0", *SMALL)
    server.wait_until_ready()
    body = {"prompt": "def", "max_tokens": 2, "ignore_eos": True}
    with server.client() as http:
        assert http.post("/v1/completions", json=body).status_code == 401
        assert http.get("/health").status_code == 200
        for key, named, model in (("ka", None, "one"), ("kb", "two", "two"), ("ka", "one", "one")):
            asked = body if named is None else {**body, "model": named}
            done = http.post("/v1/completions", json=asked, headers={"Authorization": f"Bearer {key}"})
            assert (done.status_code, done.json()["model"]) == (200, model)
        missing = http.post(
            "/v1/completions", json={**body, "model": "three"}, headers={"Authorization": "Bearer kb"}
        )
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    server.signal()
    assert server.end() == 0


def test_a_model_that_is_not_there_ends_it_with_one_sentence(serve, tmp_path):
    server = serve(str(tmp_path / "nowhere"), "--port", "0")
    assert server.end() == 2
    assert not [line for line in server.lines if "Traceback" in line]
    (told,) = [line for line in server.lines if "error" in line]
    assert "nowhere" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], "port is 70000"),
        (["--frobnicate"], "--frobnicate"),
        (["--log-level", "loud"], "loud"),
        (["--drain-seconds", "0"], "drain_seconds is 0"),
        (["--api-keys", "/no/such/keys.yaml"], "/no/such/keys.yaml"),
        (["--chat-template", "/no/such/template"], "/no/such/template"),
        (["--tls-key", "key.pem"], "tls_key"),
        (["pyhelp", "pyhelp"], "names that differ"),
        (["--protect-metrics"], "protect_metrics"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments, told, capsys):
    assert main(["serve", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert told in errors[-1]
    assert len(errors) == 1
