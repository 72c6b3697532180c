"""How lanes share llama.cpp's memory, and what that memory is made as until it is whole."""

import ctypes
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.gguf.model_file import read_model
from millstream.backends.llamacpp import layout as layouts
from millstream.backends.llamacpp.layout import (
    FIRST_BYTES,
    STREAMS_BYTES,
    CacheCost,
    Layout,
    choose_layout,
    layouts_up_to,
)
from millstream.backends.worker import ModelInfo, WorkerConfig
from millstream.scheduler.batch import Batch, Chunk, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams


def config(**changes):
    values = {
        "device": "cpu",
        "dtype": "bf16",
        "max_length": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 16,
        "num_blocks": 128,
        "threads": 1,
    }
    return WorkerConfig(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, Layout(True, 8, 8 * 256)),
        ({"num_blocks": 127}, Layout(False, 128, 2048)),
        ({"num_blocks": 4000}, Layout(True, 8, 8 * 256)),
        ({"max_length": 300, "num_blocks": 8 * 19}, Layout(True, 8, 8 * 512)),
        ({"max_num_seqs": 300, "num_blocks": 256 * 16}, Layout(True, 256, 256 * 256)),
        ({"max_num_seqs": 200, "num_blocks": 100}, Layout(False, 200, 1792)),
    ],
)
def test_the_pool_decides_how_sequences_share_memory(changes, layout):
    assert choose_layout(config(**changes), max_lanes=256) == layout


def test_streams_that_grow_are_small_at_full_length_or_beside_their_weights():
    cell = STREAMS_BYTES // 2048
    grows = config(cache_grows=True)
    assert choose_layout(grows, 256, cost=CacheCost(cell)).streams
    assert not choose_layout(grows, 256, cost=CacheCost(cell + 1)).streams
    assert choose_layout(grows, 256, cost=CacheCost(cell + 1, weights=STREAMS_BYTES)).streams
    assert choose_layout(grows, 256, cost=CacheCost(cell + 1, moves=False)).streams
    assert choose_layout(config(), 256, cost=CacheCost(cell + 1)).streams


@given(
    streams=st.booleans(),
    lanes=st.integers(1, 128),
    paddings=st.integers(1, 1000),
    cell=st.integers(1, 1 << 20),
)
def test_a_cache_that_grows_begins_small_and_each_layout_is_twice_the_one_before(
    streams, lanes, paddings, cell
):
    whole = Layout(streams, lanes, 256 * paddings * (lanes if streams else 1))
    assert layouts_up_to(whole, config(), CacheCost(cell)) == [whole]
    steps = layouts_up_to(whole, config(cache_grows=True), CacheCost(cell))
    assert steps[-1] == whole
    least = 256 * (lanes if streams else 1)
    assert steps[0].cells <= max(least, FIRST_BYTES // cell) or steps == [whole]
    assert all(2 * a.cells <= b.cells for a, b in pairwise(steps))
    assert all(step.cells % least == 0 for step in steps if streams)


# With llama.cpp itself


@pytest.fixture
def load(monkeypatch):
    """A worker of the bundled model whose cache, if it grows, begins with a lane's least."""
    pytest.importorskip("llama_cpp")
    from millstream.backends.llamacpp.worker import load_worker

    monkeypatch.setattr(layouts, "FIRST_BYTES", 1)
    opened = []

    def load(**changes):
        path = BUNDLED_MODELS["pyhelp-bf16"]
        info = ModelInfo(
            name="m",
            path=path,
            backend="llamacpp",
            architecture="llama",
            num_parameters=1,
            vocab_size=4096,
            max_length=2048,
            eos_token_ids=(2,),
            generation_defaults={},
        )
        worker = load_worker(read_model(path), info, config(**changes), lambda what, share: None)
        opened.append(worker)
        return worker

    yield load
    for worker in opened:
        worker.close()


def cells_of(worker):
    context = worker._context
    return context._api.llama_n_ctx(ctypes.c_void_p(context._context))


def greedy(worker, prompts, count):
    """The tokens of each prompt, all in one batch."""
    params = SamplingParams(temperature=0)
    size = 16
    width = 1 + max(len(prompt) + count for prompt in prompts) // size
    blocks = [tuple(range(seq * width, (seq + 1) * width)) for seq in range(len(prompts))]
    starts = tuple(
        SequenceStart(seq, tuple(prompt), len(prompt), params, seed=0) for seq, prompt in enumerate(prompts)
    )
    given, texts = [tuple(prompt) for prompt in prompts], [list(prompt) for prompt in prompts]
    for step in range(count):
        chunks = tuple(
            Chunk(seq, tokens, len(texts[seq]) - len(tokens), blocks[seq], Wants.TOKEN)
            for seq, tokens in enumerate(given)
        )
        result = worker.execute(Batch(chunks, starts if step == 0 else ()))
        assert result.unplaced == frozenset()
        given = [(token,) for token in result.token_ids]
        for text, token in zip(texts, result.token_ids, strict=True):
            text.append(token)
    worker.execute(Batch((), retired=tuple(range(len(prompts)))))
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


@pytest.mark.parametrize("streams", [True, False])
def test_a_cache_grows_as_it_fills_and_keeps_what_it_holds(load, streams):
    shape = {
        "max_length": 1024,
        "num_blocks": 8 * 64 if streams else 8 * 64 - 1,
        "max_num_batched_tokens": 2048,
    }
    prompts = [[5 + (7 * seq + i) % 900 for i in range(180 + 10 * seq)] for seq in range(4)]
    whole = load(**shape)
    growing = load(**shape, cache_grows=True)
    assert whole.streams is growing.streams is streams
    size = growing.spec.num_blocks * 16
    assert cells_of(whole) >= size
    first = cells_of(growing)
    assert first <= size // 2
    assert greedy(growing, prompts, 90) == greedy(whole, prompts, 90)
    assert first < cells_of(growing) < size
    growing._map.check_integrity()


def test_a_cache_that_is_whole_grows_no_more(load):
    worker = load(max_length=512, num_blocks=8 * 32, cache_grows=True)
    assert worker._context.lane_size == 256
    assert worker._context.grow()
    assert worker._context.lane_size == worker._context.layout.lane_size == 512
    assert not worker._context.grow()
