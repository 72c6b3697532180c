"""InstalledModel: one model of an engine, from its configuration to its running step loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec

from ..backends.worker import Backend, ModelInfo, Progress, Tokenizer, Worker, WorkerConfig
from ..errors import InvalidArgument, ModelFormatError, ModelStateError
from ..kvcache import KVCache
from ..scheduler import Scheduler
from .adapters import AdapterTable
from .config import ModelConfig
from .intake import Intake, RequestHandle
from .memory_plan import MemoryPlan, plan_memory
from .output_stream import OutputStream
from .snapshot import EngineSnapshot, idle_snapshot, take_snapshot
from .stats import EngineStats, collect_stats, idle_stats
from .step_loop import StepLoop
from .warmup import warm_up


class ModelState(Enum):
    """Where a model is in its life: Initial -> (Starting) -> Running -> (Stopping) -> Stop -> Released."""

    INITIAL = "Initial"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOP = "Stop"
    RELEASED = "Released"


@dataclass(frozen=True, slots=True)
class Running:
    """What a model has only while it runs."""

    worker: Worker
    kv: KVCache
    loop: StepLoop
    intake: Intake
    task: asyncio.Task[None]
    executor: ThreadPoolExecutor


class InstalledModel:
    """A model's configuration and state, and from `start` to `stop` its worker and step loop.

    The verbs are called on the engine's event loop, `intake` and `cancel` from any thread.
    """

    def __init__(
        self, config: ModelConfig, backend: Backend, info: ModelInfo, neighbours: Callable[[str], int]
    ) -> None:
        """`neighbours` tells the bytes that other running models will take of a device, used yet or not."""
        self.name = config.installed_name
        self.config = config
        self.info = info
        self.state = ModelState.INITIAL
        self.running: Running | None = None
        self._backend = backend
        self._neighbours = neighbours
        self.device, self._dtype, self._threads = backend.resolve(
            info, device=config.device, dtype=config.dtype, threads=config.threads
        )
        if config.max_length is not None and config.max_length > info.max_length:
            raise InvalidArgument(
                "max_length", config.max_length, f"at most {info.max_length}, what {info.name} was made for"
            )
        self.plan = self._make_plan()
        self._tokenizer: Tokenizer | ModelFormatError
        try:
            self._tokenizer = backend.load_tokenizer(info)
        except ModelFormatError as error:
            # Token ids can be served without one; whoever asks for text is told.
            self._tokenizer = error

    # Life cycle

    async def start(self, progress: Progress) -> None:
        """Load the weights, warm up and begin to step.

        Raises:
            ModelStateError: the model is neither Initial nor Stop.
            InsufficientMemory, ModelFormatError, or what an adapter is refused for: it stays as it was.
        """
        self.require(ModelState.INITIAL, ModelState.STOP, verb="started")
        before, self.state = self.state, ModelState.STARTING
        executor = ThreadPoolExecutor(1, thread_name_prefix=f"millstream-{self.name}")
        try:
            self.plan = self._make_plan()
            worker = await asyncio.get_running_loop().run_in_executor(executor, self._load, progress)
        except BaseException:
            executor.shutdown(wait=False)
            self.state = before
            raise
        spec = worker.spec
        kv = KVCache(
            spec.num_blocks,
            spec.block_size,
            enable_prefix_cache=self.config.enable_prefix_cache and spec.shares_prefixes,
            ttl=self.config.prefix_cache_ttl,
        )
        scheduler = Scheduler(
            self.config.scheduler_config(),
            kv,
            max_num_seqs=spec.max_num_seqs,
            shares_within_step=spec.shares_within_step,
            chunks_prompts=spec.chunks_prompts,
            mixes_adapters=spec.mixes_adapters,
            tenant_weights=self.config.tenant_weights,
        )
        loop = StepLoop(worker, scheduler, executor)
        adapters = AdapterTable(
            self.name,
            worker,
            executor,
            loop.live_adapters,
            max_adapters=self.config.max_adapters,
            max_rank=self.config.max_adapter_rank,
        )
        intake = Intake(
            self.name,
            self.info,
            spec,
            loop,
            adapters,
            lambda: self.tokenizer,
            max_length=self.plan.max_length,
            config=self.config,
        )
        try:
            for name, path in self.config.adapters.items():
                await adapters.load(name, Path(path), 1.0)
        except BaseException:
            worker.close()
            executor.shutdown(wait=False)
            self.state = before
            raise
        task = asyncio.create_task(loop.run(), name=f"millstream {self.name}")
        self.running = Running(worker, kv, loop, intake, task, executor)
        self.state = ModelState.RUNNING

    async def stop(self, timeout: float | None = None) -> None:
        """Refuse new requests, let the others end (after `timeout` seconds: cancel them), free the worker."""
        self.require(ModelState.RUNNING, verb="stopped")
        running = self.running
        assert running is not None  # by its state
        self.state = ModelState.STOPPING
        try:
            await running.loop.drain(timeout)
        finally:
            running.task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running.task
            # Nothing is under way after a drain; a drain that was cut short leaves at most one step.
            running.executor.shutdown()
            running.worker.close()
            self.running = None
            self.state = ModelState.STOP

    def release(self) -> None:
        """End the model's life. Raises ModelStateError while it runs."""
        self.require(ModelState.INITIAL, ModelState.STOP, verb="released")
        self.state = ModelState.RELEASED

    def require(self, *states: ModelState, verb: str) -> None:
        """Raise ModelStateError unless the model is in one of these states."""
        if self.state not in states:
            allowed = " or ".join(state.value for state in states)
            raise ModelStateError(
                f"model {self.name!r} is {self.state.value} and cannot be {verb}; it must be {allowed}"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ModelFormatError where its files have none."""
        if isinstance(self._tokenizer, ModelFormatError):
            raise ModelFormatError(f"{self._tokenizer}; only token ids with detokenize=False can be served")
        return self._tokenizer

    def reserved_bytes(self, device: str) -> int:
        """What this model takes of a device while it runs, whether it has been touched or not."""
        return self.plan.total if self.running is not None and self.device == device else 0

    # Requests

    def intake(self) -> Intake:
        """Where requests enter. Raises ModelStateError unless the model is Running."""
        if self.state is not ModelState.RUNNING or self.running is None:
            raise ModelStateError(
                f"model {self.name!r} is {self.state.value}; requests are taken while it is Running"
            )
        return self.running.intake

    def cancel(self, handle: RequestHandle) -> None:
        """End what is left of a request at the next step."""
        if self.running is not None:
            self.running.loop.cancel(handle.requests)

    def live_streams(self) -> list[OutputStream]:
        """Output streams of the requests that have not ended; on the engine's event loop."""
        return [] if self.running is None else self.running.loop.live_streams()

    def stats(self) -> EngineStats:
        """State at this moment and counters since the start; zeros while the model does not run."""
        if self.running is None:
            return idle_stats(self.name, self.plan)
        return collect_stats(self.name, self.plan, self.running.loop, self.running.kv)

    def snapshot(self) -> EngineSnapshot:
        """Its requests and blocks at this moment; on the engine's event loop."""
        stats = self.stats()
        if self.running is None:
            return idle_snapshot(self.state.value, stats)
        return take_snapshot(self.state.value, stats, self.running.loop.scheduler, self.running.kv)

    # Pieces

    def _make_plan(self) -> MemoryPlan:
        config, info = self.config, self.info
        needs = self._backend.memory_needs(info, self._worker_config(config.max_length or info.max_length, 0))
        limit = self._backend.memory_limit(self.device)
        # A pool counts as used only once it has been written to; its plan counts from the start.
        used = max(limit.used_bytes, self._neighbours(self.device))
        limit = msgspec.structs.replace(limit, used_bytes=used)
        return plan_memory(info.name, needs, limit, config, info.max_length)

    def _worker_config(self, max_length: int, num_blocks: int, cache_grows: bool = False) -> WorkerConfig:
        return WorkerConfig(
            device=self.device,
            dtype=self._dtype,
            max_length=max_length,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            block_size=self.config.block_size,
            num_blocks=num_blocks,
            threads=self._threads,
            tunes_threads=self.config.threads == 0,
            quantization=self.config.quantization,
            kv_cache_dtype=self.config.kv_cache_dtype,
            batch_invariant=self.config.batch_invariant,
            cache_grows=cache_grows,
        )

    def _load(self, progress: Progress) -> Worker:
        plan = self.plan
        config = self._worker_config(plan.max_length, plan.num_blocks, plan.cache_grows)
        worker = self._backend.load(self.info, config, progress)
        if self.config.warmup:
            try:
                warm_up(worker, progress)
            except BaseException:
                worker.close()
                raise
        return worker
