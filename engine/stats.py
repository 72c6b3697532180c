"""EngineStats: one model's state and counters, for people and for metrics."""

from time import monotonic

import msgspec

from ..kvcache import KVCache
from ..scheduler import FinishReason
from .histogram import STEP_SECOND_BOUNDS, STEP_TOKEN_BOUNDS, Distribution, no_values
from .memory_plan import MemoryPlan
from .step_loop import StepLoop


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State of one model at one moment, and its counters since it was started."""

    model: str
    started: float | None = None
    """When its step loop began, in seconds on the monotonic clock; None while it does not run."""
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    """Prompt tokens of the requests that no step has touched yet."""
    prompt_tokens: int = 0
    """Prompt tokens computed, those of a recompute after preemption included, cached ones not."""
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    sequence_steps: int = 0
    """Sequences computed, summed over the steps."""
    mean_batch_size: float = 0.0
    """Sequences per step since the start."""
    prompt_tokens_per_second: float = 0.0
    generated_tokens_per_second: float = 0.0
    block_size: int
    total_blocks: int
    held_blocks: int = 0
    cached_blocks: int = 0
    free_blocks: int = 0
    kv_bytes_per_block: int
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    finished: dict[FinishReason, int] = {}
    worker_seconds: float = 0.0
    """Spent in the worker, where the model is computed and tokens are chosen."""
    stalled_seconds: float = 0.0
    """For how long there has been work and no step has ended; 0 while there is no work."""
    failure: str | None = None
    """Why the step loop has ended by itself; None while it runs."""
    step_tokens: Distribution = no_values(STEP_TOKEN_BOUNDS)
    """Tokens computed per step."""
    step_threads: dict[int, int] = {}
    """Threads of the CPU that the last step of each size took: most tokens of the size (a power of two) ->
    threads."""
    step_seconds: Distribution = no_values(STEP_SECOND_BOUNDS)
    """Durations of steps, from the choice of their tokens to the worker's answer."""


def idle_stats(name: str, plan: MemoryPlan) -> EngineStats:
    """Statistics of a model that does not run: the plan's numbers and zeros."""
    return EngineStats(
        model=name,
        block_size=plan.block_size,
        total_blocks=plan.num_blocks,
        kv_bytes_per_block=plan.kv_per_block,
    )


def collect_stats(name: str, plan: MemoryPlan, loop: StepLoop, kv: KVCache) -> EngineStats:
    """Statistics of a running model."""
    now = monotonic()
    scheduled = loop.scheduler.stats()
    cache = kv.stats()
    return msgspec.structs.replace(
        idle_stats(name, plan),
        started=loop.started,
        running=scheduled.running,
        waiting=scheduled.waiting,
        queued_tokens=scheduled.queued_tokens,
        prompt_tokens=scheduled.prompt_tokens,
        generated_tokens=scheduled.generated_tokens,
        preemptions=scheduled.preemptions,
        steps=scheduled.steps,
        sequence_steps=loop.num_sequence_steps,
        mean_batch_size=loop.num_sequence_steps / scheduled.steps if scheduled.steps else 0.0,
        prompt_tokens_per_second=loop.prompt_rate.per_second(now),
        generated_tokens_per_second=loop.generated_rate.per_second(now),
        held_blocks=cache.held_blocks,
        cached_blocks=cache.cached_blocks,
        free_blocks=cache.free_blocks,
        prefix_queried_tokens=cache.queried_tokens,
        prefix_hit_tokens=cache.hit_tokens,
        finished=scheduled.finished,
        worker_seconds=loop.worker_seconds,
        stalled_seconds=loop.stalled_seconds(now),
        failure=loop.failure,
        step_tokens=loop.step_tokens.snapshot(),
        step_threads=dict(sorted(loop.step_threads.copy().items())),
        step_seconds=loop.step_seconds.snapshot(),
    )
