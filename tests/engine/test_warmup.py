"""Warm-up: which steps a worker gets before its first request."""

import pytest
from msgspec.structs import replace

from millstream.backends.worker import WorkerSpec
from millstream.engine import warmup
from millstream.engine.warmup import warm_up
from millstream.scheduler import Batch, StepResult

SPEC = WorkerSpec(
    vocab_size=100,
    max_length=64,
    block_size=16,
    num_blocks=50,
    max_num_seqs=6,
    max_num_batched_tokens=32,
    warmup_tokens=20,
)


class Recorder:
    """A worker that keeps the sizes of its steps, and knows what is in it."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.sizes: list[int] = []
        self.live: set[int] = set()

    def execute(self, batch: Batch) -> StepResult:
        self.live -= set(batch.retired)
        started = {start.seq for start in batch.started}
        assert not started & self.live
        self.live |= started
        assert {chunk.seq for chunk in batch.chunks} <= self.live
        if batch.chunks:
            self.sizes.append(batch.num_tokens)
        return StepResult(token_ids=[0] * len(batch.chunks))


def run(spec: WorkerSpec) -> list[int]:
    worker = Recorder(spec)
    shares: list[float] = []
    warm_up(worker, lambda what, share: shares.append(share))  # type: ignore[arg-type]
    assert worker.live == set()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return worker.sizes


def test_a_worker_with_nothing_to_learn_gets_a_chunk_and_a_full_batch() -> None:
    assert run(SPEC) == [20, 6]


def test_each_size_is_repeated_as_often_as_something_is_to_be_learnt() -> None:
    sizes = run(replace(SPEC, learning_steps=3))
    assert sizes == [20, 6, *[1] * 3, *[2] * 3, *[4] * 3, *[20] * 3]


def test_learning_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "LEARNING_SECONDS", 0.0)
    assert run(replace(SPEC, learning_steps=1000))[:2] == [20, 6]
    assert len(run(replace(SPEC, learning_steps=1000))) < 1000
