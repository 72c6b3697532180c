"""Where the torch worker takes batch_invariant, a request's bits are the same in every batch; elsewhere it is
refused by name."""

import random

import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.native import Missing, best_level
from millstream.backends.native.linear import has_bf16_products
from millstream.backends.torch.backend import TorchBackend
from millstream.backends.worker import WorkerConfig
from millstream.errors import NotSupported
from millstream.scheduler.sampling_params import SamplingParams

from ..contract.driver import Driver

SCORED = SamplingParams(temperature=0, logprobs=True, top_logprobs=2)
COUNT = 8
LEVEL = best_level()
NATIVE = pytest.mark.skipif(isinstance(LEVEL, Missing), reason="the native kernels are not built")
BFLOAT16 = pytest.mark.skipif(
    isinstance(LEVEL, Missing) or not has_bf16_products(LEVEL), reason="bfloat16 is multiplied by torch here"
)


def config(**changes):
    values = {
        "device": "cpu",
        "dtype": "float32",
        "max_length": 512,
        "max_num_seqs": 9,
        "max_num_batched_tokens": 256,
        "block_size": 16,
        "num_blocks": 9 * 32,
        "threads": 1,
        "batch_invariant": True,
    }
    return WorkerConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def info():
    return TorchBackend().inspect("pyhelp", BUNDLED_MODELS["pyhelp"])


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        pytest.param("bfloat16", "none", marks=BFLOAT16),
        pytest.param("bfloat16", "int8", marks=NATIVE),
        pytest.param("float32", "int8", marks=NATIVE),
        pytest.param("float32", "int4", marks=NATIVE),
    ],
)
def test_the_same_bits_beside_others_in_chunks_and_after_prefix_hits(info, dtype, quantization):
    asked = config(dtype=dtype, quantization=quantization)
    backend = TorchBackend()
    backend.memory_needs(info, asked)
    worker = backend.load(info, asked, lambda what, share: None)
    driver = Driver(worker)
    draw = random.Random(3)
    prompts = [[draw.randrange(5, 4000) for _ in range(draw.randint(5, 200))] for _ in range(20)]

    def answers(lives):
        found = [(live.output, live.logprobs) for live in lives]
        driver.end(*lives, now=True)
        return found

    expected = []
    for prompt in prompts:
        live = driver.begin(prompt, params=SCORED)
        driver.generate([live], COUNT)
        expected += answers([live])
    together = []
    for first in range(0, 20, 4):
        lives = [driver.begin(prompt, params=SCORED) for prompt in prompts[first : first + 4]]
        driver.generate(lives, COUNT, chunk=(1, 60))
        together += answers(lives)
    assert together == expected
    hits = []
    for index, prompt in enumerate(prompts):
        other = driver.begin([*prompt, *prompts[index - 1]][:300], params=SCORED)
        driver.generate([other], 2, chunk=(30, 90))
        live = driver.begin(prompt, params=SCORED, prefix=other)
        driver.end(other)
        driver.generate([live], COUNT)
        hits += answers([live])
    assert hits == expected
    worker.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, r"torch's products in float32|needs the native kernels"),
        ({"quantization": "int8", "block_size": 4}, r"over blocks of 4|needs the native kernels"),
        ({"dtype": "float16"}, r"do not attend in float16|needs the native kernels"),
    ],
)
def test_what_cannot_hold_is_refused_by_name(info, changes, reason):
    with pytest.raises(
        NotSupported, match=rf"batch_invariant is True, and pyhelp cannot hold it: .*({reason})"
    ):
        TorchBackend().memory_needs(info, config(**changes))
    TorchBackend().memory_needs(info, config(**{**changes, "batch_invariant": False}))
