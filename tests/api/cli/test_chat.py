"""A conversation, on the fake worker with the bundled model's tokenizer."""

from collections.abc import Iterator
from typing import Any

import pytest

from millstream.api.cli.chat import Conversation
from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.engine import Engine, ModelConfig
from millstream.errors import InvalidArgument, LimitExceeded, NotSupported

CONFIG = ModelConfig(
    model="fake",
    backend=FakeBackend(vocab_size=4096, tokenizer=HFTokenizer.from_folder(PYHELP)),
    max_length=300,
    num_blocks=60,
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        engine.install_model(CONFIG)
        engine.start_model("fake")
        yield engine


def conversation(engine: Engine, **sampling: Any) -> Conversation:
    return Conversation(engine, CONFIG, {"max_new_tokens": 8, "temperature": 0, **sampling}, "be brief")


def prefix_hits(engine: Engine) -> int:
    return engine.stats("fake").prefix_hit_tokens


def test_each_turn_builds_on_the_ones_before(engine: Engine) -> None:
    talk = conversation(engine)
    first = "".join(talk.say("what does os.path.join do, and how is it different from adding strings?"))
    assert first
    assert prefix_hits(engine) == 0
    "".join(talk.say("and os.path.split?"))
    assert prefix_hits(engine) >= 32


def test_reset_forgets_what_was_said(engine: Engine) -> None:
    talk = conversation(engine)
    first = "".join(talk.say("what does zip do?"))
    assert "".join(talk.say("what does zip do?")) != first
    talk.reset()
    assert "".join(talk.say("what does zip do?")) == first


def test_an_answer_that_is_not_read_is_stopped(engine: Engine) -> None:
    talk = conversation(engine, max_new_tokens=200)
    answer = talk.say("hi")
    next(answer)
    answer.close()
    engine.sync_request("fake")
    assert engine.stats("fake").running == 0


def test_a_conversation_that_is_too_long_can_go_on_after_a_reset(engine: Engine) -> None:
    talk = conversation(engine)
    with pytest.raises(LimitExceeded):
        "".join(talk.say("word " * 400))
    assert "".join(talk.say("hi"))


def test_what_cannot_be_shown_is_refused(engine: Engine) -> None:
    for fields in ({"n": 2}, {"logprobs": True}, {"prompt_logprobs": 0}):
        with pytest.raises(InvalidArgument, match=next(iter(fields))):
            conversation(engine, **fields)


def test_a_model_without_a_chat_template_is_refused() -> None:
    config = ModelConfig(model="plain", backend=FakeBackend(), max_length=100, num_blocks=20)
    with Engine() as engine:
        engine.install_model(config)
        with pytest.raises(NotSupported):
            Conversation(engine, config, {}, None)
