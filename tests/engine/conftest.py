"""An engine over the fake backend."""

from contextlib import asynccontextmanager

import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig


@asynccontextmanager
async def running_engine(backend=None, name="fake", **config):
    async with AsyncEngine() as engine:
        config = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_length": 512, **config}
        backend = backend or FakeBackend(vocab_size=200)
        await engine.install_model(ModelConfig(model=name, backend=backend, **config))
        await engine.start_model(name)
        yield engine


@pytest.fixture
def start_engine():
    return running_engine
