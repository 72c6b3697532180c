"""What every worker does: the same tokens, however sequences are cut, mixed and moved about."""

import pytest

from millstream.backends.worker import Worker
from millstream.errors import WorkerError
from millstream.scheduler.batch import Batch, StepResult
from millstream.scheduler.sampling_params import SamplingParams

from .driver import Driver
from .workers import FACTORIES, prompts

SHORT, MIDDLE, LONG = prompts()[4], prompts()[1], prompts()[3]
COUNT = 10
SAMPLED = SamplingParams(temperature=0.9, top_k=50, seed=7)


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


@pytest.mark.parametrize("chunk", [1, 3, 4, 16, 50])
def test_a_prompt_in_chunks_is_as_one_in_one_go(driver, chunk):
    expected = driver.alone(LONG, COUNT)
    live = driver.begin(LONG)
    driver.generate([live], COUNT, chunk=(chunk, chunk))
    assert live.output == expected
    assert len(set(expected)) > 3, "the model says nothing"


@pytest.mark.parametrize("order", ["ascending", "descending", "apart"])
def test_blocks_may_stand_anywhere(driver, order):
    expected = driver.alone(MIDDLE, COUNT)
    table = sorted(driver.random.sample(range(driver.worker.spec.num_blocks), 80 // driver.block_size))
    if order == "descending":
        table.reverse()
    elif order == "apart":
        driver.random.shuffle(table)
    live = driver.begin(MIDDLE, blocks=table)
    driver.generate([live], COUNT)
    assert live.output == expected


def test_many_sequences_in_uneven_mixtures(driver):
    wanted = prompts()[:6]
    expected = [driver.alone(prompt, COUNT) for prompt in wanted]
    for chunk in [(1, 7), (1, 60), (1000, 1000)]:
        lives = [driver.begin(prompt) for prompt in wanted]
        driver.generate(lives, COUNT, chunk=chunk)
        assert [live.output for live in lives] == expected
        driver.end(*lives)


def test_sequences_come_and_go(driver):
    wanted = [(prompt, 1 + 3 * (i % 4)) for i, prompt in enumerate(prompts())]
    expected = [driver.alone(prompt, count) for prompt, count in wanted]
    waiting, running, outputs = list(enumerate(wanted)), [], {}
    while waiting or running:
        while waiting and len(running) < 4:
            index, (prompt, count) = waiting.pop(0)
            running.append((index, count, driver.begin(prompt)))
        driver.step(*((live, 40) for _, _, live in running))
        for index, count, live in list(running):
            if len(live.output) == count:
                outputs[index] = live.output
                driver.end(live)
                running.remove((index, count, live))
    assert [outputs[i] for i in range(len(wanted))] == expected


def test_an_id_may_end_and_begin_in_one_batch(driver):
    expected = driver.alone(LONG, COUNT)
    first = driver.begin(SHORT)
    driver.generate([first], 3)
    driver.end(first)
    second = driver.begin(LONG)
    assert second.seq == first.seq
    driver.generate([second], COUNT)
    assert second.output == expected


def test_a_live_id_may_begin_anew(driver):
    expected = driver.alone(MIDDLE, COUNT)
    live = driver.begin(LONG)
    driver.generate([live], 3)
    driver.restart(live, MIDDLE)
    driver.generate([live], COUNT)
    assert live.output == expected


def test_unknown_ids_may_be_retired(driver):
    assert driver.worker.execute(Batch((), (), (0, 3))) == StepResult(token_ids=[])
    assert driver.worker.execute(Batch((), (), (3, 3))) == StepResult(token_ids=[])
    assert len(driver.alone(SHORT, 2)) == 2


def test_a_batch_may_be_empty(driver):
    live = driver.begin(SHORT)
    driver.step(live)
    before = list(live.tokens)
    assert driver.worker.execute(Batch(())) == StepResult(token_ids=[])
    driver.generate([live], COUNT)
    assert live.tokens[: len(before)] == before
    assert live.output == driver.alone(SHORT, COUNT)


def test_a_prefix_of_a_live_sequence_is_shared(driver):
    expected = [driver.alone([*LONG[:90], *SHORT], COUNT), driver.alone(LONG, COUNT)]
    first = driver.begin(LONG)
    driver.generate([first], 3)
    second = driver.begin([*LONG[:90], *SHORT], prefix=first)
    assert second.shared == 90 // driver.block_size
    driver.generate([first, second], COUNT)
    assert [second.output, first.output] == expected


def test_a_prefix_of_a_finished_sequence_is_shared(driver):
    first = driver.begin(LONG)
    driver.generate([first], COUNT)
    driver.end(first, now=True)
    turn = [*first.tokens, *SHORT]
    expected = driver.alone(turn, COUNT)
    second = driver.begin(turn, prefix=first)
    assert second.shared == (len(first.tokens) - 1) // driver.block_size, "generated tokens are shared, too"
    driver.generate([second], COUNT)
    assert second.output == expected


def test_several_sequences_share_the_prefix_of_a_finished_one(driver):
    tails = [SHORT, MIDDLE[-7:], SHORT[::-1], [5]]
    expected = [driver.alone([*LONG[:88], *tail], COUNT) for tail in tails]
    first = driver.begin(LONG)
    driver.generate([first], 1)
    driver.end(first)
    lives = [driver.begin([*LONG[:88], *tail], prefix=first) for tail in tails]
    driver.generate(lives, COUNT, chunk=(1, 9))
    assert [live.output for live in lives] == expected


def test_samples_fork_from_a_prompt(driver):
    params = [SamplingParams(temperature=2.0, top_k=20, seed=seed) for seed in range(4)]
    expected = [driver.alone(LONG, COUNT, params=each) for each in params]
    assert len({tuple(tokens) for tokens in expected}) > 1
    leader = driver.begin(LONG, params=params[0])
    driver.step(leader)
    followers = [driver.begin(LONG, params=each, prefix=leader) for each in params[1:]]
    driver.generate([leader, *followers], COUNT)
    assert [live.output for live in [leader, *followers]] == expected


def test_blocks_are_written_over_by_a_new_owner(driver):
    expected = [driver.alone(prompt, COUNT) for prompt in (LONG, MIDDLE)]
    first = driver.begin(LONG)
    driver.generate([first], COUNT)
    driver.end(first)
    second = driver.begin(MIDDLE, blocks=first.blocks[3:])
    driver.generate([second], COUNT)
    assert second.output == expected[1]
    # What is left of the first one may still be matched.
    part = LONG[: 3 * driver.block_size + 1]
    third = driver.begin(part, prefix=first)
    driver.generate([third, second], COUNT)
    assert third.shared == 3
    assert third.output == driver.alone(part, COUNT)
    fourth = driver.begin(LONG)
    driver.generate([fourth], COUNT)
    assert fourth.output == expected[0]


@pytest.mark.parametrize("others", [3, 8])
def test_what_is_not_lost_is_still_there(driver, others):
    """However many sequences have run since, on other blocks."""
    first = driver.begin(LONG)
    driver.generate([first], 1)
    driver.end(first, now=True)
    driver.lost.clear()
    for prompt in prompts()[4 : 4 + others]:
        driver.begin(prompt)
        driver.generate(driver.lives, 1)
        driver.end(*driver.lives, now=True)
    kept = next((i for i, block in enumerate(first.blocks) if block in driver.lost), len(first.blocks))
    turn = [*LONG[: driver.block_size * kept], *SHORT]
    second = driver.begin(turn, prefix=first)
    assert second.shared == min(kept, len(LONG) // driver.block_size)
    driver.generate([second], COUNT)
    assert second.output == driver.alone(turn, COUNT)


def test_tokens_are_chosen_where_they_are_wanted_only(driver):
    lives = [driver.begin(prompt) for prompt in (SHORT, MIDDLE, LONG)]
    result = driver.step((lives[0], 5), lives[1], (lives[2], len(LONG) - 1))
    assert [token is None for token in result.token_ids] == [True, False, True]
    assert driver.step((lives[0], 3), (lives[2], 1)).token_ids[0] is None
    driver.generate(lives, COUNT)
    assert [live.output for live in lives] == [driver.alone(p, COUNT) for p in (SHORT, MIDDLE, LONG)]


def test_nothing_may_be_wanted_of_a_whole_batch(driver):
    live = driver.begin(LONG)
    assert driver.step((live, 30)).token_ids == [None]
    driver.generate([live], COUNT)
    assert live.output == driver.alone(LONG, COUNT)


@pytest.mark.parametrize("chunk", [(1, 1), (1, 9), (1000, 1000)])
def test_every_prompt_token_is_scored_once(driver, chunk):
    params = SamplingParams(temperature=0, prompt_logprobs=1, logprobs=True)
    whole = driver.begin(LONG, params=params)
    driver.generate([whole], 3)
    driver.end(whole)
    live, other = driver.begin(LONG, params=params), driver.begin(MIDDLE)
    driver.generate([live, other], 3, chunk=chunk)
    assert len(live.prompt_logprobs) == len(LONG)
    assert live.prompt_logprobs[0] is None
    assert len(live.logprobs) == 3
    assert other.prompt_logprobs == other.logprobs == []
    for found, expected in zip(live.prompt_logprobs[1:], whole.prompt_logprobs[1:], strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=0.15)
        assert found.logprob <= 0


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SAMPLED], ids=["greedy", "sampled"])
def test_a_sequence_resumes_with_the_tokens_it_had(driver, params):
    expected = driver.alone(LONG, COUNT, params=params)
    first = driver.begin(LONG, params=params)
    driver.generate([first], 4)
    driver.end(first)
    driver.alone(MIDDLE, 2)
    second = driver.begin(first.tokens, params=params, generated=4)
    driver.generate([second], COUNT, chunk=(1, 40))
    assert second.output == expected


def test_a_sequence_resumes_on_a_part_of_its_blocks(driver):
    expected = driver.alone(LONG, COUNT)
    first = driver.begin(LONG)
    driver.generate([first], 6)
    driver.end(first)
    second = driver.begin(MIDDLE, blocks=first.blocks[48 // driver.block_size :])
    driver.generate([second], 1)
    first.computed = 48
    third = driver.begin(first.tokens, generated=6, prefix=first)
    assert third.shared == 48 // driver.block_size
    driver.generate([third, second], COUNT)
    assert third.output == expected


def test_seeded_draws_do_not_depend_on_the_company(driver):
    wanted = prompts()[:5]
    expected = [driver.alone(prompt, COUNT, params=SAMPLED) for prompt in wanted]
    lives = [driver.begin(prompt, params=SAMPLED) for prompt in wanted]
    driver.generate(lives, COUNT, chunk=(1, 30))
    assert [live.output for live in lives] == expected


def test_the_largest_batch(driver):
    spec = driver.worker.spec
    lives = [
        driver.begin((LONG * 2)[: spec.max_num_batched_tokens // spec.max_num_seqs])
        for _ in range(spec.max_num_seqs)
    ]
    driver.step(*lives)
    assert sum(live.computed for live in lives) == spec.max_num_batched_tokens
    driver.generate(lives, 4)
    outputs = [live.output for live in lives]
    driver.end(*lives)
    assert outputs == [driver.alone(lives[0].tokens[: -len(outputs[0])], 4)] * len(lives)


def test_the_longest_sequence(driver):
    spec = driver.worker.spec
    prompt = (LONG * 3)[: spec.max_length - 5]
    live = driver.begin(prompt)
    driver.generate([live], 5)
    assert len(live.tokens) == spec.max_length
    driver.end(live)
    assert live.output == driver.alone(prompt, 5)


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_closed_worker_executes_nothing(factory):
    worker = factory()
    worker.close()
    worker.close()
    with pytest.raises(WorkerError, match="closed"):
        worker.execute(Batch(()))
