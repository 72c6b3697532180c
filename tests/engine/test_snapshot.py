"""EngineSnapshot: rows of requests, the map of blocks, and what other tenants may see of them."""

import asyncio
import threading

import msgspec
import pytest

from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, ModelConfig, RequestOptions, RequestState, SamplingParams
from millstream.engine.snapshot import MAX_CELLS, MAX_ROWS, block_map
from millstream.kvcache import BlockState

FREE, CACHED, HELD = (bytes([state]) for state in BlockState)


class Gate:
    """Lets the fake worker's steps through one by one, so that a test sees the engine during a step."""

    def __init__(self):
        self.entered = asyncio.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.loop = asyncio.get_running_loop()

    def __call__(self, batch):
        self.loop.call_soon_threadsafe(self.entered.release)
        self.open.acquire()

    async def step(self):
        """Let the step under way end, and wait until the next one is being computed."""
        self.open.release()
        await self.entered.acquire()


def unroll(blocks):
    return [(held, cached) for cells, held, cached in blocks.runs for _ in range(cells)]


def test_map_has_a_cell_for_each_block_of_a_small_pool():
    blocks = block_map(HELD * 3 + CACHED + FREE * 4)
    assert blocks.blocks_per_cell == 1
    assert blocks.runs == ((3, 1, 0), (1, 0, 1), (4, 0, 0))


@pytest.mark.parametrize("num_blocks", [1, MAX_CELLS, MAX_CELLS + 1, 100_000])
def test_map_accounts_for_every_block_in_a_bounded_number_of_cells(num_blocks):
    states = (HELD + CACHED + FREE + HELD) * (num_blocks // 4) + CACHED * (num_blocks % 4)
    blocks = block_map(states)
    cells = unroll(blocks)
    assert len(cells) <= MAX_CELLS
    assert (len(cells) - 1) * blocks.blocks_per_cell < num_blocks <= len(cells) * blocks.blocks_per_cell
    assert sum(held for held, _ in cells) == states.count(HELD)
    assert sum(cached for _, cached in cells) == states.count(CACHED)


def test_map_of_a_large_pool_stays_small_as_json():
    assert len(msgspec.json.encode(block_map(HELD * 49_000 + FREE * 51_000))) < 64
    cells_that_all_differ = (HELD * 98 + CACHED * 98) * 510
    assert len(msgspec.json.encode(block_map(cells_that_all_differ))) < 16_000


async def test_rows_follow_a_request_from_the_queue_to_its_end(start_engine):
    gate = Gate()
    backend = FakeBackend(vocab_size=200, on_batch=gate)
    async with start_engine(
        backend, max_num_seqs=1, max_num_batched_tokens=32, block_size=16, warmup=False
    ) as engine:
        params = SamplingParams(temperature=0, max_new_tokens=3)
        await engine.start_request("fake", list(range(40)), params, RequestOptions(tenant="a", priority=1))
        await engine.start_request("fake", list(range(10)), params, RequestOptions(tenant="b"))
        await gate.entered.acquire()

        snapshot = engine.snapshot("fake")
        first, second = snapshot.requests
        assert (first.state, second.state) == (RequestState.PREFILL, RequestState.QUEUED)
        assert (first.tenant, first.priority, first.prompt_tokens, first.blocks) == ("a", 1, 40, 3)
        assert (second.blocks, second.computed_tokens) == (0, 0)
        assert snapshot.first_token_seconds is None
        assert sum(held for held, _ in unroll(snapshot.blocks)) == 3 == snapshot.stats.held_blocks

        await gate.step()
        assert engine.snapshot("fake").requests[0].computed_tokens == 32
        await gate.step()
        snapshot = engine.snapshot("fake")
        assert snapshot.requests[0].state is RequestState.DECODE
        assert snapshot.requests[0].generated_tokens == 1
        assert snapshot.first_token_seconds >= 0
        assert snapshot.requests[0].age >= snapshot.first_token_seconds

        gate.open.release(100)
        await engine.sync_request("fake")
        snapshot = engine.snapshot("fake")
        assert snapshot.requests == ()
        cells = unroll(snapshot.blocks)
        assert sum(held for held, _ in cells) == 0
        assert sum(cached for _, cached in cells) == snapshot.stats.cached_blocks > 0


async def test_preempted_request_is_told_from_a_queued_one(start_engine):
    seen = set()
    async with start_engine(num_blocks=8, max_length=120, block_size=16) as engine:
        params = SamplingParams(temperature=0, max_new_tokens=60)
        streams = [(await engine.start_request("fake", [i] * 40, params))[1] for i in range(2)]
        for stream in streams:
            async for _ in stream:
                seen.update(row.state for row in engine.snapshot("fake").requests)
    assert RequestState.PREEMPTED in seen


async def test_only_so_many_requests_have_rows(start_engine):
    gate = Gate()
    async with start_engine(FakeBackend(vocab_size=200, on_batch=gate), warmup=False) as engine:
        for _ in range(MAX_ROWS + 9):
            await engine.start_request("fake", [1, 2, 3], SamplingParams(max_new_tokens=1))
        await gate.entered.acquire()
        snapshot = engine.snapshot("fake")
        assert len(snapshot.requests) == MAX_ROWS
        assert snapshot.omitted_requests == 9
        assert [row.state for row in snapshot.requests[:9]].count(RequestState.PREFILL) == 8
        gate.open.release(1000)
        await engine.sync_request("fake")


async def test_rows_of_other_tenants_tell_state_and_blocks_alone(start_engine):
    gate = Gate()
    async with start_engine(FakeBackend(vocab_size=200, on_batch=gate), warmup=False) as engine:
        for tenant in ("mine", "theirs"):
            await engine.start_request(
                "fake", [7] * 20, SamplingParams(max_new_tokens=1), RequestOptions(tenant=tenant)
            )
        await gate.entered.acquire()
        mine, theirs = engine.snapshot("fake").seen_by("mine").requests
        gate.open.release(100)
    assert (mine.tenant, mine.prompt_tokens) == ("mine", 20)
    told = {name for name in theirs.__struct_fields__ if getattr(theirs, name) is not None}
    assert told == {"state", "blocks"}
    assert theirs.blocks == 2


async def test_snapshot_of_a_model_that_does_not_run():
    async with AsyncEngine() as engine:
        await engine.install_model(ModelConfig(model="fake", backend=FakeBackend(), max_length=256))
        snapshot = engine.snapshot("fake")
    assert snapshot.state == "Initial"
    assert snapshot.requests == ()
    total = snapshot.stats.total_blocks
    assert set(unroll(snapshot.blocks)) == {(0, 0)}
    assert len(unroll(snapshot.blocks)) * snapshot.blocks.blocks_per_cell >= total
