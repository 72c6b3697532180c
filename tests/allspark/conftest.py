"""An engine with one running model that needs no weights."""

from collections.abc import Iterator
from threading import Semaphore

import pytest

from millstream.allspark import AsModelConfig, AsStatus, Engine
from millstream.backends.fake import FakeBackend
from millstream.scheduler import Batch

from ..waiting import HANG_SECONDS


class Gate:
    """Lets a fake worker compute one step for each permit, once it is closed."""

    def __init__(self) -> None:
        self._permits = Semaphore(0)
        self._is_open = True

    def close(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        self._permits.release(10_000)

    def step(self) -> None:
        self._permits.release()

    def pass_batch(self, batch: Batch) -> None:
        if not self._is_open and not self._permits.acquire(timeout=HANG_SECONDS):
            raise RuntimeError("the test never let the step through")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def config(gate: Gate) -> AsModelConfig:
    backend = FakeBackend(vocab_size=500, max_length=256, on_batch=gate.pass_batch)
    return AsModelConfig(
        model_name="m", compute_unit="CPU", engine_max_length=200, engine_max_batch=4, backend=backend
    )


@pytest.fixture
def engine(config: AsModelConfig, gate: Gate) -> Iterator[Engine]:
    """An engine in which the model "m" runs."""
    with Engine() as engine:
        assert engine.install_model(config) is AsStatus.ALLSPARK_SUCCESS
        assert engine.start_model("m") is AsStatus.ALLSPARK_SUCCESS
        yield engine
        gate.open()
