"""Kernels on several threads: the same bits as on one, from any thread, beside others, after a fork."""

import os
import threading
from collections.abc import Iterator
from time import monotonic, sleep

import pytest
import torch
from torch import Tensor

from millstream.backends.native import Missing, levels, set_threads
from millstream.backends.native.linear import PLAIN, NativeLinear, has_bf16_products, pack

FOUND = levels()
LEVELS = () if isinstance(FOUND, Missing) else FOUND
pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built here")


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Iterator[None]:
    yield
    set_threads(1)


def layer(level: str, bits: int, outputs: int = 1000, inputs: int = 640) -> NativeLinear:
    """A layer whose products are worth several threads."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).bfloat16()
    return NativeLinear(level, pack(level, bits, weight, None, PLAIN), torch.float32)


def rows(count: int, inputs: int = 640) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(2)).bfloat16()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("count", [1, 7, 200])
def test_any_number_of_threads_gives_the_same_bits(level: str, bits: int, count: int) -> None:
    if bits == 16 and not has_bf16_products(level):
        pytest.skip("the level has no such products")
    set_threads(1)
    product, x = layer(level, bits), rows(count)
    expected = product(x)
    for threads in (2, 3, 5, 2, 16):
        set_threads(threads)
        for _ in range(20):
            assert torch.equal(product(x), expected)


def test_many_short_regions_lose_nothing() -> None:
    product, x = layer(LEVELS[0], 8, outputs=320, inputs=256), rows(4, 256)
    expected = product(x)
    set_threads(4)
    assert all(torch.equal(product(x), expected) for _ in range(5000))


def test_threads_that_call_at_the_same_time_have_helpers_of_their_own() -> None:
    product, x = layer(LEVELS[0], 8), rows(16)
    expected = product(x)
    wrong: list[int] = []

    def compute(threads: int) -> None:
        set_threads(threads)
        wrong.extend(i for i in range(200) if not torch.equal(product(x), expected))

    callers = [threading.Thread(target=compute, args=(threads,)) for threads in (1, 2, 3, 4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_helpers_end_with_the_thread_that_they_help() -> None:
    product, x = layer(LEVELS[0], 8), rows(16)

    def compute() -> None:
        set_threads(5)
        product(x)

    before = set(os.listdir("/proc/self/task"))
    caller = threading.Thread(target=compute)
    caller.start()
    caller.join()
    # Python's part of a thread ends before the thread does.
    deadline = monotonic() + 60
    while set(os.listdir("/proc/self/task")) - before:
        assert monotonic() < deadline, "there are threads left"
        sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_made_by_fork_has_helpers_of_its_own() -> None:
    product, x = layer(LEVELS[0], 8), rows(16)
    expected = product(x).tolist()
    set_threads(3)
    y = torch.empty(16, 1000)
    product.write(x, y)  # helpers are there
    child = os.fork()
    if child == 0:
        y.zero_()
        product.write(x, y)
        os._exit(0 if y.tolist() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("threads", [0, -1, 4097])
def test_a_senseless_number_is_refused(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads is {threads}; allowed: 1 to 4096"):
        set_threads(threads)
