"""What the tests of all faces share: a question and its documented answer, and logging left as it was."""

import logging

import pytest


@pytest.fixture(autouse=True)
def unconfigured_logging():
    """Commands configure logging for their process; a test's neighbours are to see nothing of it."""
    names = (None, "millstream", "millstream.prompts", "uvicorn", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    before = [(list(log.handlers), log.level, log.propagate, log.disabled) for log in loggers]
    yield
    for log, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate, log.disabled = propagate, disabled


@pytest.fixture
def question():
    return [{"role": "user", "content": "What does os.path.join do?"}]


@pytest.fixture
def answer():
    return (
        "os.path.join: Join two or more pathname components, inserting '/' as needed. If any component is an "
        "absolute path, all previous path components will be discarded."
    )
