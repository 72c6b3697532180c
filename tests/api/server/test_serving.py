"""A real server process: start-up, signals, the drain, and its exit status."""

import json
import os
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ...sse import stream_events
from ...waiting import HANG_SECONDS

PROGRAM = Path(__file__).with_name("serving_program.py")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX'")


class Server:
    """A process that serves, and the lines it has logged."""

    def __init__(self, program=PROGRAM, **options):
        command = [sys.executable, str(program), json.dumps(options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._new = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.scheme = "https" if "tls_certificate" in options else "http"

    def _read(self):
        for line in self.process.stderr:
            self._new.put(line.strip())
        self._new.put(None)

    def wait_for(self, text):
        """The next line that has this text, as an object where it is one."""
        while (line := self._new.get(timeout=HANG_SECONDS)) is not None:
            self.lines.append(line)
            if text in line:
                return json.loads(line) if line.startswith("{") else line
        raise AssertionError(f"no {text!r} in\n" + "\n".join(self.lines))

    def client(self, **options):
        if not hasattr(self, "port"):
            self.port = self.wait_for("listening on")["port"]
        return httpx.Client(
            base_url=f"{self.scheme}://127.0.0.1:{self.port}", timeout=HANG_SECONDS, **options
        )

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def end(self):
        status = self.process.wait(HANG_SECONDS)
        self._reader.join(HANG_SECONDS)
        while (line := self._new.get(timeout=HANG_SECONDS)) is not None:
            self.lines.append(line)
        return status


@pytest.fixture
def serve():
    servers = []

    def start(*program, **options):
        servers.append(Server(*program, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.process.stderr.close()


def test_streams_end_while_the_server_drains_and_new_requests_are_refused(serve):
    server = serve()
    with server.client() as http, server.client() as other:
        server.wait_for('"ready"')
        assert other.get("/ready").json() == {"status": "ready"}
        with http.stream("POST", "/v1/completions", json={"tokens": 300}) as response:
            stream = stream_events(response)
            next(stream)
            server.signal()
            server.wait_for("waiting up to")
            assert other.get("/health").status_code == 200
            not_ready = other.get("/ready")
            assert (not_ready.status_code, not_ready.json()["reason"]) == (503, "the server is shutting down")
            refused = other.post("/v1/completions", json={"tokens": 1})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert refused.headers["connection"] == "close" and 1 <= int(refused.headers["retry-after"]) <= 30
            assert refused.headers["x-request-id"]
            *counts, done = stream
    assert done == "[DONE]" and json.loads(counts[-1])["end"] == "LENGTH"
    assert sum(json.loads(count)["tokens"] for count in counts) >= 298
    assert server.end() == 0
    lines = [json.loads(line) for line in server.lines]
    (access,) = [line for line in lines if line.get("output_tokens") == 300]
    assert (access["status"], access["model"], access["prompt_tokens"]) == (200, "m", 3)
    assert not [line for line in lines if line["level"] in ("error", "critical")]


def test_what_outlasts_the_drain_is_cancelled_and_told_so(serve):
    server = serve(drain_seconds=0.2, step_time=0.005)
    with server.client() as http:
        server.wait_for('"ready"')
        with http.stream("POST", "/v1/completions", json={"tokens": 4000}) as response:
            stream = stream_events(response)
            next(stream)
            server.signal(signal.SIGINT)
            *counts, done = stream
    assert done == "[DONE]" and json.loads(counts[-1])["end"] == "CANCELLED"
    assert server.end() == 0
    assert any("cancelling 1 requests" in line for line in server.lines)


def test_a_second_signal_ends_the_process_at_once(serve):
    server = serve()
    with server.client() as http:
        server.wait_for('"ready"')
        with http.stream("POST", "/v1/completions", json={"tokens": 4000}) as response:
            stream = stream_events(response)
            next(stream)
            server.signal()
            server.wait_for("waiting up to")
            server.signal()
            assert server.process.wait(10) == 128 + signal.SIGTERM


def test_an_idle_server_ends_although_connections_are_kept(serve):
    server = serve()
    with server.client() as http:
        server.wait_for('"ready"')
        response = http.get("/health")
        assert response.headers["x-content-type-options"] == "nosniff" and "server" not in response.headers
        server.signal()
        assert server.end() == 0


def test_probes_are_answered_while_models_are_loaded(serve, tmp_path):
    server = serve(load_gate=str(tmp_path / "go"))
    with server.client() as http:
        assert http.get("/health").status_code == 200
        starting = http.get("/ready")
        assert (starting.status_code, starting.json()["reason"]) == (503, "the server is starting")
        assert http.post("/v1/completions", json={"tokens": 1}).json()["error"]["code"] == "starting"
        (tmp_path / "go").touch()
        server.wait_for('"ready"')
        assert http.get("/ready").status_code == 200
        assert http.post("/v1/completions", json={"tokens": 1}).status_code == 200
    server.signal()
    assert server.end() == 0


def test_a_signal_while_models_are_loaded_ends_the_server(serve, tmp_path):
    server = serve(load_gate=str(tmp_path / "never"))
    with server.client() as http:
        assert http.get("/ready").status_code == 503
    server.signal()
    assert server.end() == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error(serve):
    server = serve(load_fails=True)
    assert server.end() == 2
    assert "max_length is 100000" in server.lines[-1]
    assert not any("Traceback" in line for line in server.lines)


def test_an_address_that_is_taken_is_one_clear_error(serve):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        server = serve(port=port)
        assert server.end() == 2
    assert f"host and port is '127.0.0.1:{port}'" in server.lines[-1]


def test_a_client_that_hangs_up_frees_its_keys_place_and_its_request(serve):
    keys = [{"name": "a", "key": "k1", "max_running_requests": 1}, {"name": "b", "key": "k2"}]
    server = serve(keys=keys, step_time=0.005)
    first = {"Authorization": "Bearer k1"}
    with server.client(headers=first) as http, server.client(headers={"X-API-Key": "k2"}) as other:
        server.wait_for('"ready"')
        with http.stream("POST", "/v1/completions", json={"tokens": 4000}) as response:
            stream = stream_events(response)
            next(stream)
            with server.client(headers=first) as again:
                refused = again.post("/v1/completions", json={"tokens": 1})
            assert refused.status_code == 429 and "retry-after-ms" in refused.headers
            assert other.post("/v1/completions", json={"tokens": 1}).status_code == 200
        gone = server.wait_for('"client_left"')
        assert (gone["tenant"], gone["client_left"]) == ("a", True)
        while other.get("/running").json():
            pass
        assert http.post("/v1/completions", json={"tokens": 1}).status_code == 200
        assert http.get("/running", headers={"Authorization": "Bearer k3"}).status_code == 401
    server.signal()
    assert server.end() == 0


def test_a_body_that_is_too_large_is_refused_over_a_real_connection(serve):
    server = serve(max_body_bytes=1000)

    def chunks():
        for _ in range(40):
            yield b"x" * 30

    with server.client() as http:
        server.wait_for('"ready"')
        for content in (b"x" * 1500, chunks()):
            response = http.post("/v1/completions", content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert http.post("/v1/completions", json={"tokens": 1}).status_code == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is missing")
def test_tls_and_its_faults(serve, tmp_path):
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    )
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    server = serve(**files)
    trusted = ssl.create_default_context(cafile=files["tls_certificate"])
    with server.client(verify=trusted) as http:
        assert http.get("/health").status_code == 200
    broken = serve(**{**files, "tls_key": files["tls_certificate"]})
    assert broken.end() == 2 and "tls_certificate, tls_key is" in broken.lines[-1]


def test_a_worker_that_hangs_does_not_keep_the_process(serve, tmp_path):
    # The bounds on the end are many seconds; for the test's sake they are shortened.
    program = tmp_path / "shortened.py"
    program.write_text(
        "import runpy\n"
        "from millstream.api.server import draining, serving\n"
        "draining.CANCEL_SECONDS = 0.2\n"
        "serving.EXIT_SECONDS = 0.5\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    server = serve(program, hangs=True, drain_seconds=0.1)
    with server.client() as http:
        server.wait_for('"ready"')
        with http.stream("POST", "/v1/completions", json={"tokens": 5}):
            server.signal()
            assert server.end() == 1
    assert any("a worker does not end" in line for line in server.lines)


def test_a_signal_ends_a_server_whose_model_is_still_being_loaded(serve):
    server = serve(load_is_endless=True)
    server.wait_for("loading for ever")
    server.signal()
    # The thread that loads never ends; without status 0 the process was left by its last resort.
    assert server.end() == 0
    assert not any("does not end" in line for line in server.lines)
