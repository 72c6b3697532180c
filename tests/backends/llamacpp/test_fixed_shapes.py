"""With batch_invariant, llama.cpp gives a request the same bits in every batch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.gguf.model_file import read_model
from millstream.backends.llamacpp.fixed_shapes import TILE, FixedShape, alike, require_fixed_shapes
from millstream.backends.llamacpp.layout import Layout, choose_layout
from millstream.backends.llamacpp.passes import Work
from millstream.backends.worker import ModelInfo, WorkerConfig
from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import write_checkpoint
from millstream.errors import NotSupported
from millstream.scheduler.sampling_params import SamplingParams

from ..contract.driver import Driver
from .small_models import save_bert

SCORED = SamplingParams(temperature=0, logprobs=True, top_logprobs=2)
COUNT = 8


def config(**changes):
    values = {
        "device": "cpu",
        "dtype": "bf16",
        "max_length": 512,
        "max_num_seqs": 9,
        "max_num_batched_tokens": 256,
        "block_size": 16,
        "num_blocks": 9 * 32,
        "threads": 1,
        "batch_invariant": True,
    }
    return WorkerConfig(**{**values, **changes})


@given(prompt=st.integers(1, 400), generated=st.integers(0, 20), data=st.data())
def test_each_position_belongs_to_one_call_wherever_steps_are_cut(prompt, generated, data):
    shape = FixedShape(prompt, False)
    calls = {}
    for position in range(prompt + generated):
        begin, end = shape.begin(position), shape.end(position)
        assert begin <= position < end
        assert end - begin <= (TILE if position < prompt else 1)
        assert calls.setdefault(begin, end) == end
    start = data.draw(st.integers(0, prompt + generated - 1))
    end = data.draw(st.integers(start + 1, prompt + generated))
    first, last = shape.begin(start), shape.end(end - 1)
    work = Work(0, 0, range(first, last), first, range(0), False, surplus=last - end)
    assert work.end == end
    found = [(first + share.begin, first + share.end) for share in shape.shares(work)]
    assert found == [(begin, calls[begin]) for begin in sorted(calls) if first <= begin < last]


@given(first=st.integers(1, 400), second=st.integers(1, 400), held=st.integers(0, 400))
def test_positions_are_alike_where_both_prompts_compute_them_in_the_same_calls(first, second, held):
    same = alike(first, second, held)
    shapes = FixedShape(first, False), FixedShape(second, False)
    assert same <= held
    for position in range(same):
        one, other = ((shape.begin(position), shape.end(position)) for shape in shapes)
        assert one == other


def test_every_sequence_has_a_stream_though_fewer_run_at_once():
    assert choose_layout(config(), 256) == Layout(True, 9, 9 * 512)
    assert choose_layout(config(num_blocks=100), 256) == Layout(True, 3, 3 * 512)
    assert choose_layout(config(num_blocks=10), 256) == Layout(True, 1, 512)


def test_what_cannot_hold_is_refused_by_name(tmp_path):
    model = read_model(BUNDLED_MODELS["pyhelp-bf16"])
    require_fixed_shapes(config(), model)
    with pytest.raises(NotSupported, match=r"pyhelp-bf16\.gguf cannot hold it: .* on cuda is not known"):
        require_fixed_shapes(config(device="cuda"), model)
    require_fixed_shapes(config(device="cuda", batch_invariant=False), model)
    save_bert(tmp_path / "encoder.gguf")
    with pytest.raises(NotSupported, match="tokens see those that come after them"):
        require_fixed_shapes(config(), read_model(tmp_path / "encoder.gguf"))


# With llama.cpp itself


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model of random weights, whose tokens are near ties."""
    pytest.importorskip("llama_cpp")
    from millstream.backends.export.checkpoint import export_gguf

    folder = tmp_path_factory.mktemp("random")
    write_checkpoint(folder / "checkpoint", SHAPES["tiny"])
    export_gguf(folder / "checkpoint", folder / "tiny.gguf", "q8_0")
    return folder / "tiny.gguf"


@pytest.fixture(scope="module", params=["pyhelp-bf16", "pyhelp-q8_0", "random"])
def worker(request, random_model):
    from millstream.backends.llamacpp.backend import LlamaCppBackend
    from millstream.backends.llamacpp.worker import load_worker

    path = random_model if request.param == "random" else BUNDLED_MODELS[request.param]
    info: ModelInfo = LlamaCppBackend().inspect("m", path)
    worker = load_worker(read_model(path), info, config(), lambda what, share: None)
    yield worker
    worker.close()


@pytest.fixture
def driver(worker):
    driver = Driver(worker)
    yield driver
    driver.end(*driver.lives, now=True)


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(3)
    return [[draw.randrange(5, 4000) for _ in range(draw.randint(5, 200))] for _ in range(20)]


def answer(live):
    """Tokens and the bits of their log-probabilities."""
    assert len(live.logprobs) == len(live.output) == COUNT
    return live.output, live.logprobs


def alone(driver, tokens, chunk=(1000, 1000)):
    live = driver.begin(tokens, params=SCORED)
    driver.generate([live], COUNT, chunk=chunk)
    driver.end(live, now=True)
    return answer(live)


@pytest.fixture(scope="module")
def expected(worker, prompts):
    driver = Driver(worker)
    return [alone(driver, prompt) for prompt in prompts]


@pytest.mark.parametrize("chunk", [(3, 30), (20, 90)])
def test_the_same_bits_among_eight_others_and_in_chunks(driver, prompts, expected, chunk):
    found = []
    for first in range(0, 20, 5):
        beside = [driver.begin(prompts[(first + 5 + i) % 20][:-2], params=SCORED) for i in range(4)]
        driver.generate(beside, 2)
        lives = [driver.begin(prompt, params=SCORED) for prompt in prompts[first : first + 5]]
        driver.generate([*lives, *beside], COUNT, chunk=chunk)
        found += map(answer, lives)
        driver.end(*lives, *beside, now=True)
    assert found == expected


def test_the_same_bits_after_a_prefix_hit(driver, prompts, expected):
    found = []
    for index, prompt in enumerate(prompts):
        # Their prompts are shorter, as long, or longer: only what is computed alike is continued.
        other = [prompt, prompt[: len(prompt) // 2], [*prompt, *prompts[index - 1]][:300]][index % 3]
        first = driver.begin(other, params=SCORED)
        driver.generate([first], COUNT)
        again = driver.begin(prompt, params=SCORED, prefix=first)
        driver.end(first)
        driver.generate([again], COUNT)
        found.append(answer(again))
        driver.end(again, now=True)
    assert found == expected
    assert driver.worker.map_stats.continued + driver.worker.map_stats.copied > 0


def test_the_same_bits_in_the_second_turn_of_a_conversation(driver, prompts):
    for prompt in prompts[:8]:
        first = driver.begin(prompt, params=SCORED)
        driver.generate([first], COUNT)
        driver.end(first, now=True)
        turn = [*first.tokens, *prompts[-1]]
        second = driver.begin(turn, params=SCORED, prefix=first)
        driver.generate([second], COUNT)
        found = answer(second)
        driver.end(second, now=True)
        assert found == alone(driver, turn)


def test_the_same_bits_after_a_preemption(driver, prompts, expected):
    found = []
    for index, prompt in enumerate(prompts):
        first = driver.begin(prompt, params=SCORED)
        driver.generate([first], 5, chunk=(30, 60))
        driver.end(first)
        resumed = driver.begin(
            first.tokens[:-1] if index % 2 else first.tokens,
            params=SCORED,
            generated=4 if index % 2 else 5,
            prefix=first if index % 3 else None,
        )
        driver.generate([resumed], COUNT, chunk=(30, 60))
        missing = COUNT - len(resumed.logprobs)
        found.append((resumed.output, [*first.logprobs[:missing], *resumed.logprobs]))
        driver.end(resumed, now=True)
    assert found == expected


def test_scores_of_prompts_are_the_same_in_chunks(driver, prompts):
    params = SamplingParams(temperature=0, prompt_logprobs=1, logprobs=True)
    for prompt in prompts[:5]:
        found = []
        for chunk in [(1000, 1000), (5, 40)]:
            live = driver.begin(prompt, params=params)
            driver.generate([live], 3, chunk=chunk)
            found.append((live.prompt_logprobs, live.output, live.logprobs))
            driver.end(live, now=True)
        assert found[0] == found[1]
        assert len(found[0][0]) == len(prompt)
