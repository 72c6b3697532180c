"""Runners and the comparing process understand each other, and no runner takes the comparison down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.benchmarks.compare.measuring import run_job
from millstream.benchmarks.compare.runners import protocol
from millstream.benchmarks.compare.runners.protocol import (
    Answer,
    Asked,
    Job,
    Load,
    Outcome,
    read_job,
    read_outcome,
    serve_job,
    write,
)

RUNNERS = Path(protocol.__file__).parent
OF_MILLSTREAM = {"millstream_engine.py", "llamacpp.py", "bare_loop.py"}


def make_job(count: int = 4, in_flight: int = 2) -> Job:
    return Job(
        model="none",
        threads=1,
        in_flight=in_flight,
        max_length=8,
        prefix_cache=False,
        shared_len=0,
        settings={"speed": 3, "kind": "echo"},
        warmup=[Asked([1], 2)],
        earlier=[],
        requests=[Asked([number, number], 3) for number in range(count)],
    )


class EchoServer:
    """Answers with the first token of the prompt, one token of each request at a time."""

    def __init__(self, job: Job) -> None:
        self.most_active = 0
        self.closed = False

    def serve(self, load: Load) -> None:
        active: list[int] = []
        while not load.finished:
            active += load.hand_over()
            self.most_active = max(self.most_active, len(active))
            active = [one for one in active if not load.receive(one, load.requests[one].token_ids[:1])]

    def close(self) -> None:
        self.closed = True


def test_jobs_and_outcomes_survive_their_files(tmp_path: Path) -> None:
    job = make_job()
    outcome = Outcome(wall_seconds=1.5, answers=[Answer(0.0, [0.5, 1.5], [7, 8])], versions={"a": "1"})
    write(tmp_path / "job", job)
    write(tmp_path / "outcome", outcome)
    assert read_job(tmp_path / "job") == job
    assert read_outcome(tmp_path / "outcome") == outcome


@pytest.mark.torch
def test_a_job_is_served() -> None:
    made: list[EchoServer] = []

    def load_server(job: Job) -> EchoServer:
        made.append(EchoServer(job))
        return made[-1]

    outcome = serve_job(make_job(), load_server, ["millstream"])
    assert [answer.token_ids for answer in outcome.answers] == [[n, n, n] for n in range(4)]
    assert made[0].most_active == 2 and made[0].closed
    assert outcome.wall_seconds == max(answer.last for answer in outcome.answers) > 0
    assert all(answer.handed_over < answer.first < answer.last for answer in outcome.answers)
    assert outcome.answers[2].handed_over >= outcome.answers[0].last
    assert outcome.settings == make_job().settings and set(outcome.versions) == {"millstream"}


def test_memory_is_needed_for_what_runs_at_once_and_for_what_is_cached() -> None:
    assert make_job(count=9, in_flight=4).num_sequences == 4
    assert make_job(count=1, in_flight=4).num_sequences == 1


def test_batches_begin_in_order_and_keep_their_requests_waiting() -> None:
    load = Load([Asked([1], 1)] * 5, in_flight=5)
    batches = []
    for batch in load.batches(2):
        batches.append(batch)
        for number in batch:
            load.receive(number, [number])
    assert batches == [[0, 1], [2, 3], [4]]
    assert load.finished
    answers = load.answers()
    assert answers[4].handed_over < answers[0].first < answers[4].first


def test_requests_of_later_batches_are_handed_over_as_others_finish() -> None:
    load = Load([Asked([1], 1)] * 4, in_flight=2)
    for batch in load.batches(2):
        for number in batch:
            load.receive(number, [number])
    answers = load.answers()
    assert answers[0].first <= answers[2].handed_over <= answers[1].first <= answers[3].handed_over
    with pytest.raises(ValueError, match="batches of 3 requests, but only 2 in flight"):
        list(Load([Asked([1], 1)] * 4, in_flight=2).batches(3))


def test_too_many_tokens_and_too_few_are_errors() -> None:
    load = Load([Asked([1], 2)], in_flight=1)
    assert list(load.hand_over()) == [0]
    assert not load.receive(0, [5])
    with pytest.raises(ValueError, match="request 0 got 1 tokens instead of 2"):
        load.answers()
    with pytest.raises(ValueError, match="request 0 got 3 tokens instead of 2"):
        load.receive(0, [5, 5])


def test_peak_memory_is_this_process_s_own() -> None:
    # In a process of its own: this one's peak may be long past.
    program = (
        "from millstream.benchmarks.compare.runners.protocol import peak_rss_bytes\n"
        "before = peak_rss_bytes()\n"
        "block = b'x' * 200_000_000\n"
        "print(peak_rss_bytes() - before)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 190_000_000 < int(run.stdout) < 300_000_000


SCRIPTS = {
    "raises": "raise RuntimeError('no such kernel')",
    "dies": "import os; print('out of memory', flush=True); os.abort()",
    "is refused": "import sys; sys.exit('bad model')",
}


@pytest.mark.parametrize(
    ("script", "failure"),
    [("raises", "no such kernel"), ("dies", "ended with -6: out of memory"), ("is refused", "bad model")],
)
def test_a_runner_that_fails_is_an_outcome(script: str, failure: str) -> None:
    outcome = run_job(make_job(), [sys.executable, "-c", SCRIPTS[script]], timeout=60)
    assert outcome.failure is not None and failure in outcome.failure
    assert outcome.answers == []


def test_a_runner_that_hangs_is_ended() -> None:
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = [sys.executable, "-c", f"import subprocess; subprocess.run({child})"]
    assert run_job(make_job(), program, timeout=0.5).failure == "not done after 0.5 s"


@pytest.mark.torch
def test_what_a_runner_raises_is_its_outcome() -> None:
    program = [sys.executable, "-P", str(RUNNERS / "launch.py"), "transformers_static"]
    outcome = run_job(make_job(), program, timeout=120)
    assert outcome.failure == "KeyError: 'batch_size'"


@pytest.mark.parametrize(
    "path",
    [path for path in RUNNERS.glob("*.py") if path.name not in OF_MILLSTREAM],
    ids=lambda path: path.name,
)
def test_launched_runners_need_nothing_of_millstream(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            assert node.level == 1 or (node.module or "").split(".")[0] != "millstream"
        if isinstance(node, ast.Import):
            assert all(name.name.split(".")[0] != "millstream" for name in node.names)
