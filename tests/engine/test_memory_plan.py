"""plan_memory: what it chooses and what it refuses, from numbers alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.backends.fake import FakeBackend
from millstream.backends.machine.hardware import MemoryLimit
from millstream.backends.worker import MemoryNeeds
from millstream.engine import AsyncEngine, ModelConfig
from millstream.engine.memory_plan import plan_memory
from millstream.errors import InsufficientMemory

MIB = 1 << 20


def plan(limit=1000, used=0, weights=100, activations=50, per_block=1, shared=False, longest=1024, **asked):
    config = ModelConfig(model="m", **{"memory_fraction": 1.0, "max_num_seqs": 4, **asked})
    needs = MemoryNeeds(weights=weights * MIB, activations=activations * MIB, kv_per_block=per_block * MIB)
    return plan_memory("m", needs, MemoryLimit(limit * MIB, used * MIB, "test", shared), config, longest)


def test_the_pool_holds_every_sequence_at_full_length_or_what_fits():
    assert plan().num_blocks == 4 * 64
    assert plan(limit=300).num_blocks == 150
    assert plan(limit=300, memory_fraction=0.5, weights=0).num_blocks == 100


def test_memory_that_others_live_by_is_left_to_them_by_half():
    """The 850 MiB that are left hold 850 blocks."""
    assert plan(shared=True, max_num_seqs=4).num_blocks == 4 * 64
    assert plan(shared=True, max_num_seqs=64).num_blocks == 425
    assert plan(max_num_seqs=64).num_blocks == 850
    assert plan(shared=True, max_num_seqs=64, used=400).num_blocks == 225


def test_one_request_of_full_length_has_room_though_it_is_more_than_a_share():
    assert plan(limit=250, shared=True).num_blocks == 64
    assert plan(limit=250, shared=True, max_length=1024).num_blocks == 64
    assert plan(limit=200, shared=True).max_length == 50 * 16


def test_a_cache_grows_only_where_there_is_room_to_move_it():
    assert plan(shared=True, max_num_seqs=64).cache_grows
    assert not plan(limit=250, shared=True).cache_grows
    assert not plan(shared=False).cache_grows
    assert not plan(shared=True, num_blocks=100).cache_grows


def test_a_length_nobody_asked_for_shrinks_and_one_asked_for_is_refused():
    assert plan(limit=190).max_length == 40 * 16
    with pytest.raises(InsufficientMemory, match=r"it fits with max_length=640"):
        plan(limit=190, max_length=1024)
    with pytest.raises(InsufficientMemory, match="fits with max_length=320"):
        plan(limit=170)
    with pytest.raises(InsufficientMemory, match=r"needs 100.0 MiB for weights.*would make room"):
        plan(limit=120)


def test_blocks_asked_for_are_taken_as_they_are():
    assert plan(num_blocks=10).num_blocks == 10
    assert plan(num_blocks=10).max_length == 160
    with pytest.raises(InsufficientMemory):
        plan(num_blocks=900)


@given(
    limit=st.integers(1, 4000),
    used=st.integers(0, 1000),
    num_blocks=st.one_of(st.none(), st.integers(2, 2000)),
    auto=st.booleans(),
    max_length=st.integers(2, 4096),
    shared=st.booleans(),
)
def test_a_plan_never_exceeds_its_limit(limit, used, num_blocks, auto, max_length, shared):
    try:
        made = plan(
            limit=limit,
            used=used,
            num_blocks=num_blocks,
            shared=shared,
            longest=max_length,
            max_length=None if auto else max_length,
        )
    except InsufficientMemory:
        return
    assert made.used_bytes + made.total <= made.limit_bytes
    assert made.max_length <= max_length
    assert num_blocks in (None, made.num_blocks)
    growth = made.num_blocks * made.kv_per_block if made.cache_grows else 0
    assert made.used_bytes + made.total + growth <= made.limit_bytes
    if auto:
        assert made.num_blocks * made.block_size >= made.max_length


class SmallMemory(FakeBackend):
    """A machine of a million bytes, of which none ever seems to be in use."""

    def memory_limit(self, device):
        return MemoryLimit(limit_bytes=1_000_000, used_bytes=0, source="test")


async def test_a_pool_that_nobody_has_touched_yet_counts_as_taken():
    backend = SmallMemory(max_length=512)
    third = ModelConfig(model="third", backend=backend, max_length=512)
    async with AsyncEngine() as engine:
        for name, blocks in (("first", 1000), ("second", 400)):
            config = ModelConfig(model=name, backend=backend, num_blocks=blocks, max_length=64)
            await engine.install_model(config)
            await engine.start_model(name)
        assert engine.memory_plan("second").used_bytes == engine.memory_plan("first").total
        with pytest.raises(InsufficientMemory):
            await engine.install_model(third)
        await engine.stop_model("first")
        await engine.release_model("first")
        await engine.install_model(third)
