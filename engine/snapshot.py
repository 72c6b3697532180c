"""EngineSnapshot: what one model is doing at one moment, for people who watch it: requests and blocks."""

from collections.abc import Iterator
from enum import Enum
from itertools import chain, groupby, islice
from statistics import median
from time import monotonic
from typing import Self

import msgspec

from ..kvcache import BlockState, KVCache
from ..scheduler import Request, RequestStatus, Scheduler
from .stats import EngineStats

MAX_ROWS = 128
"""Requests that a snapshot describes one by one."""
MAX_CELLS = 1024
"""Cells of a snapshot's map of blocks."""
_RECENT = 30.0
"""Seconds that a first token counts as recent."""


class RequestState(Enum):
    """What a request that has not ended waits for."""

    QUEUED = "queued"
    """Its first step."""
    PREEMPTED = "preempted"
    """Its blocks, which it has lost to others."""
    PREFILL = "prefill"
    """The rest of its prompt, or after a preemption of all its tokens, to be computed."""
    DECODE = "decode"
    """Its next token."""


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of a request. In a row of somebody else's request, only `state` and `blocks` are told."""

    state: RequestState
    blocks: int
    """Blocks it holds; shared ones are counted for each holder."""
    id: int | None = None
    tenant: str | None = None
    priority: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that were found in the prefix cache."""
    computed_tokens: int | None = None
    """Tokens whose keys and values are in its blocks."""
    generated_tokens: int | None = None
    age: float | None = None
    """Seconds since its arrival."""

    def anonymous(self) -> Self:
        """The row as other tenants may see it."""
        return type(self)(state=self.state, blocks=self.blocks)


class BlockMap(msgspec.Struct, frozen=True, kw_only=True):
    """The pool in the order of its block ids, cell by cell; the last cell may have fewer blocks."""

    blocks_per_cell: int
    runs: tuple[tuple[int, int, int], ...]
    """Neighbouring cells that look the same: (cells, held blocks of each, cached blocks of each)."""


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One model at one moment. Of prompts and outputs it knows lengths only."""

    state: str
    """Where the model is in its life; a ModelState's value."""
    stats: EngineStats
    first_token_seconds: float | None = None
    """Median time from arrival to first token, of the first tokens of the last 30 seconds."""
    requests: tuple[RequestRow, ...] = ()
    """Running requests, then waiting ones in the order of their arrival; at most MAX_ROWS."""
    omitted_requests: int = 0
    """Requests that have no row."""
    blocks: BlockMap

    def seen_by(self, tenant: str) -> Self:
        """The snapshot with the rows of other tenants made anonymous."""
        rows = (row if row.tenant == tenant else row.anonymous() for row in self.requests)
        return msgspec.structs.replace(self, requests=tuple(rows))


def idle_snapshot(state: str, stats: EngineStats) -> EngineSnapshot:
    """Snapshot of a model that does not run: nothing but free blocks."""
    return EngineSnapshot(state=state, stats=stats, blocks=block_map(bytes(stats.total_blocks)))


def take_snapshot(state: str, stats: EngineStats, scheduler: Scheduler, kv: KVCache) -> EngineSnapshot:
    """Snapshot of a running model.

    A step changes neither requests nor tables while it is computed, so any moment on the loop will do.
    """
    now = monotonic()
    requests = scheduler.live_requests()
    shown = tuple(_row(request, now) for request in islice(_running_first(requests), MAX_ROWS))
    recent = [seconds for when, seconds in list(scheduler.counters.first_tokens) if now - when <= _RECENT]
    return EngineSnapshot(
        state=state,
        stats=stats,
        first_token_seconds=median(recent) if recent else None,
        requests=shown,
        omitted_requests=len(requests) - len(shown),
        blocks=block_map(kv.block_states()),
    )


def block_map(states: bytes, *, max_cells: int = MAX_CELLS) -> BlockMap:
    """The map of blocks in these states, one BlockState a byte, in at most `max_cells` cells."""
    size = max(-(-len(states) // max_cells), 1)
    held, cached = int(BlockState.HELD), int(BlockState.CACHED)
    cells = (
        (states.count(held, at, at + size), states.count(cached, at, at + size))
        for at in range(0, len(states), size)
    )
    runs = ((sum(1 for _ in same), *cell) for cell, same in groupby(cells))
    return BlockMap(blocks_per_cell=size, runs=tuple(runs))


def _running_first(requests: list[Request]) -> Iterator[Request]:
    running = (request for request in requests if request.status is RequestStatus.RUNNING)
    waiting = (request for request in requests if request.status is RequestStatus.WAITING)
    return chain(running, waiting)


def _row(request: Request, now: float) -> RequestRow:
    return RequestRow(
        state=_state(request),
        blocks=0 if request.table is None else len(request.table.blocks),
        id=request.request_id,
        tenant=request.tenant,
        priority=request.priority,
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        computed_tokens=request.num_computed_tokens,
        generated_tokens=request.num_output_tokens,
        age=now - request.arrival_time,
    )


def _state(request: Request) -> RequestState:
    if request.status is RequestStatus.WAITING:
        return RequestState.PREEMPTED if request.num_preemptions else RequestState.QUEUED
    # In decode only the token generated last is left to compute.
    caught_up = request.num_output_tokens and request.num_computed_tokens == len(request.token_ids) - 1
    return RequestState.DECODE if caught_up else RequestState.PREFILL
