"""What every worker that generates does with requests for an embedding, alone and beside texts."""

import pytest

from millstream.backends.worker import Worker
from millstream.scheduler.batch import Pooling

from ..embedder import error
from .driver import Driver, Live
from .workers import FACTORIES, prompts

SHORT, MIDDLE, LONG = prompts()[4], prompts()[1], prompts()[3]
COUNT = 8
TOLERANCE = 6e-3
"""Length of a difference, as a share of the embedding's, for workers that compute in 16 bits."""


@pytest.fixture(scope="module", params=FACTORIES, ids=lambda factory: factory.__name__)
def worker(request):
    """One worker for all tests, so that each begins with what the ones before it left behind."""
    worker = request.param()
    yield worker
    worker.close()


@pytest.fixture
def driver(worker: Worker, request) -> Driver:
    driver = Driver(worker, seed=len(request.node.name))
    yield driver
    driver.end(*driver.lives, now=True)


def alone(driver: Driver, tokens: list[int], pooling: Pooling) -> tuple[float, ...]:
    live = driver.begin(tokens, pooling=pooling)
    driver.embed([live])
    driver.end(live, now=True)
    return live.embedding


def difference(lives: list[Live], expected: list[tuple[float, ...]]) -> float:
    return error([live.embedding for live in lives], expected)


def test_the_size_is_what_the_spec_says(driver):
    spec = driver.worker.spec.embedding
    assert len(alone(driver, SHORT, spec.pooling)) == spec.size


@pytest.mark.parametrize("pooling", Pooling)
def test_pieces_and_company_change_nothing(driver, pooling):
    wanted = prompts()[:5]
    expected = [alone(driver, prompt, pooling) for prompt in wanted]
    assert error(expected[0], expected[1]) > 3 * TOLERANCE or pooling is Pooling.CLS, "the model says nothing"
    for chunk in [(1, 7), (5, 60), (1000, 1000)]:
        lives = [driver.begin(prompt, pooling=pooling) for prompt in wanted]
        driver.embed(lives, chunk)
        assert difference(lives, expected) < TOLERANCE
        driver.end(*lives)


@pytest.mark.parametrize("pooling", Pooling)
def test_texts_and_embeddings_share_steps(driver, pooling):
    tokens = driver.alone(LONG, COUNT)
    expected = alone(driver, MIDDLE, pooling)
    text, prompt = driver.begin(LONG), driver.begin(MIDDLE, pooling=pooling)
    while prompt.embedding is None:
        chunks = [(text, 40), (prompt, 9)]
        driver.random.shuffle(chunks)
        driver.step(*chunks)
    driver.generate([text], max(COUNT, len(text.output)))
    assert text.output[:COUNT] == tokens
    assert difference([prompt], [expected]) < TOLERANCE


@pytest.mark.parametrize("pooling", Pooling)
def test_one_that_is_preempted_in_its_prompt_begins_anew(driver, pooling):
    expected = alone(driver, LONG, pooling)
    first = driver.begin(LONG, pooling=pooling)
    driver.step((first, 50))
    driver.end(first)
    driver.alone(SHORT, 2)
    second = driver.begin(LONG, pooling=pooling)
    driver.embed([second], (1, 40))
    assert difference([second], [expected]) < TOLERANCE


def test_an_id_that_was_pooled_may_generate(driver):
    expected = driver.alone(LONG, COUNT)
    first = driver.begin(SHORT, pooling=Pooling.MEAN)
    driver.step((first, 5))
    driver.end(first)
    second = driver.begin(LONG)
    assert second.seq == first.seq
    driver.generate([second], COUNT)
    assert second.output == expected


def test_the_last_state_can_be_had_behind_a_prefix_of_somebody_else(driver):
    expected = alone(driver, [*LONG[:90], *SHORT], Pooling.LAST)
    first = driver.begin(LONG)
    driver.generate([first], 2)
    second = driver.begin([*LONG[:90], *SHORT], prefix=first, pooling=Pooling.LAST)
    assert second.shared > 0
    driver.embed([second], (1, 30))
    assert difference([second], [expected]) < TOLERANCE


def test_a_prefix_that_was_pooled_may_be_generated_from(driver):
    expected = driver.alone([*LONG[:90], *SHORT], COUNT)
    first = driver.begin(LONG, pooling=Pooling.MEAN)
    driver.embed([first], (30, 60))
    driver.end(first)
    second = driver.begin([*LONG[:90], *SHORT], prefix=first)
    driver.generate([second], COUNT)
    assert second.output == expected


def test_the_largest_batch_of_embeddings(driver):
    spec = driver.worker.spec
    each = (LONG * 2)[: spec.max_num_batched_tokens // spec.max_num_seqs]
    expected = alone(driver, each, Pooling.MEAN)
    lives = [driver.begin(each, pooling=Pooling.MEAN) for _ in range(spec.max_num_seqs)]
    driver.step(*lives)
    assert difference(lives, [expected] * len(lives)) < TOLERANCE
