"""`run`, on the fake worker with the bundled model's tokenizer."""

import pytest

from millstream.api.cli.run import QUESTIONS, ask_questions, demonstrate
from millstream.api.cli.running import run_async, running_model
from millstream.backends.bundled import PYHELP
from millstream.backends.bundled.facts import load_facts
from millstream.backends.bundled.phrasing import QUESTIONS as PHRASINGS
from millstream.backends.fake import FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.engine import ModelConfig
from millstream.errors import MillstreamError
from millstream.scheduler import Batch


def test_all_questions_are_answered_and_figures_follow(capsys: pytest.CaptureFixture[str]) -> None:
    backend = FakeBackend(vocab_size=4096, tokenizer=HFTokenizer.from_folder(PYHELP))
    config = ModelConfig(model="fake", backend=backend, max_length=400, num_blocks=400)
    run_async(demonstrate(config, 9))
    printed = capsys.readouterr().out
    for number, question in enumerate([*QUESTIONS, QUESTIONS[0]], 1):
        assert f"[{number}] {question.text}\n" in printed
    assert "9 requests in" in printed
    assert "KV cache: at most" in printed
    assert "prefix cache: 0 of" not in printed


def test_a_model_without_a_chat_template_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(model="fake", backend=FakeBackend(), max_length=2000, num_blocks=400)
    run_async(demonstrate(config, 2))
    assert "2 requests in" in capsys.readouterr().out


def test_a_failing_worker_is_reported() -> None:
    def fail(batch: Batch) -> None:
        if batch.chunks:
            raise RuntimeError("out of ink")

    backend = FakeBackend(on_batch=fail)
    config = ModelConfig(model="fake", backend=backend, max_length=2000, num_blocks=400, warmup=False)
    with pytest.raises(MillstreamError, match="out of ink"):
        run_async(demonstrate(config, 2))


@pytest.mark.torch
def test_the_bundled_model_answers_all_questions_right() -> None:
    async def ask() -> list[str]:
        async with running_model(ModelConfig(model="pyhelp", threads=1, num_blocks=600)) as model:
            answers = [answer async for answer in ask_questions(model, len(QUESTIONS))]
            for answer in answers:
                await answer.stream.await_finished()
            return [answer.stream.get_nowait().text for answer in answers]

    facts = {
        template.format(fact.name): fact.answer
        for fact in load_facts()
        for template in PHRASINGS.get(fact.kind, ())
    }
    assert run_async(ask()) == [facts[question.text] for question in QUESTIONS]
