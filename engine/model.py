"""InstalledModel: one model of an engine, from its configuration to its running step loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import count
from time import monotonic

import msgspec

from ..backends.worker import Backend, ModelInfo, Progress, Tokenizer, Worker, WorkerConfig
from ..errors import InvalidArgument, ModelFormatError, ModelStateError
from ..kvcache import KVCache, root_digest
from ..scheduler import Request, SamplingParams, Scheduler
from .checks import check_lengths, check_prompt, check_token_ids
from .config import ModelConfig
from .memory_plan import MemoryPlan, plan_memory
from .outputs import Output
from .request_options import RequestOptions
from .result_queue import ResultQueue
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


class RequestHandle:
    """One request: its samples' queues, and what an engine needs to stop it."""

    __slots__ = ("model", "queues", "released", "request_id", "requests")

    def __init__(self, model: str, requests: Sequence[Request], queues: Sequence[ResultQueue]) -> None:
        self.model = model
        self.request_id = requests[0].request_id
        self.requests = tuple(requests)
        self.queues = tuple(queues)
        self.released = False

    @property
    def queue(self) -> ResultQueue:
        """The first sample's queue."""
        return self.queues[0]

    @property
    def finished(self) -> bool:
        """True when every sample has ended."""
        return all(queue.finish_reason is not None for queue in self.queues)


@dataclass(frozen=True, slots=True)
class Running:
    """What a model has only while it runs."""

    worker: Worker
    kv: KVCache
    loop: StepLoop
    task: asyncio.Task[None]
    executor: ThreadPoolExecutor


class InstalledModel:
    """A model's configuration and state, and from `start` to `stop` its worker and step loop.

    The verbs are called on the engine's event loop, `start_request` and `cancel` from any thread.
    """

    _request_ids = count(1)

    def __init__(self, config: ModelConfig, backend: Backend, info: ModelInfo) -> None:
        self.name = config.installed_name
        self.config = config
        self.info = info
        self.state = ModelState.INITIAL
        self.running: Running | None = None
        self._backend = backend
        self._device, self._dtype, self._threads = backend.resolve(
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
            InsufficientMemory, ModelFormatError: it stays as it was.
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
            tenant_weights=self.config.tenant_weights,
        )
        loop = StepLoop(worker, scheduler, executor)
        task = asyncio.create_task(loop.run(), name=f"millstream {self.name}")
        self.running = Running(worker, kv, loop, task, executor)
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

    # Requests

    def start_request(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions
    ) -> RequestHandle:
        """Check a request, queue it and give back its handle. Never blocks.

        Raises:
            ModelStateError, InvalidArgument, LimitExceeded, QueueFull
        """
        running = self.running
        if self.state is not ModelState.RUNNING or running is None:
            raise ModelStateError(
                f"model {self.name!r} is {self.state.value}; requests are taken while it is Running"
            )
        if params.stop and not options.detokenize:
            raise InvalidArgument(
                "stop", params.stop, "nothing with detokenize=False: there is no text to search"
            )
        token_ids = check_prompt(prompt, self.info.vocab_size)
        check_token_ids(params, self.info.vocab_size)
        max_output = check_lengths(self.name, len(token_ids), params, self.plan.max_length)
        now = monotonic()
        salt = options.tenant if options.cache_salt is None else options.cache_salt
        queue_timeout = self.config.queue_timeout if options.queue_timeout is None else options.queue_timeout
        eos = self.info.eos_token_ids if params.eos_token_ids is None else params.eos_token_ids
        requests: list[Request] = []
        outputs: list[Output] = []
        for sample in range(params.n):
            if sample == 1:
                # Only the first sample reports on the prompt they share.
                params = msgspec.structs.replace(params, prompt_logprobs=None)
            request = Request(
                next(self._request_ids),
                token_ids,
                params,
                seed=options.seed_of_sample(params, sample),
                max_tokens=len(token_ids) + max_output,
                cache_root=root_digest(salt=salt),
                eos_token_ids=eos,
                priority=options.priority,
                tenant=options.tenant,
                arrival_time=now,
                deadline=None if options.deadline is None else now + options.deadline,
                queue_deadline=None if queue_timeout is None else now + queue_timeout,
                leader=requests[0] if requests else None,
            )
            queue = ResultQueue(
                prompt_length=len(token_ids), on_gpu=self._device.startswith("cuda"), arrival=now
            )
            stream = None
            if options.detokenize:
                stream = self.tokenizer.stream(skip_special_tokens=params.skip_special_tokens)
            requests.append(request)
            outputs.append(Output(request, queue, stream))
        running.loop.submit(outputs)
        return RequestHandle(self.name, requests, [output.queue for output in outputs])

    def cancel(self, handle: RequestHandle) -> None:
        """End what is left of a request at the next step."""
        if self.running is not None:
            self.running.loop.cancel(handle.requests)

    def live_queues(self) -> list[ResultQueue]:
        """Queues of the requests that have not ended; on the engine's event loop."""
        return [] if self.running is None else self.running.loop.live_queues()

    def stats(self) -> EngineStats:
        """State at this moment and counters since the start; zeros while the model does not run."""
        if self.running is None:
            return idle_stats(self.name, self.plan)
        return collect_stats(self.name, self.plan, self.running.loop, self.running.kv)

    # Pieces

    def _make_plan(self) -> MemoryPlan:
        config, info = self.config, self.info
        max_length = config.max_length or info.max_length
        limit = self._backend.memory_limit(self._device)
        return plan_memory(
            info.name,
            self._backend.memory_needs(info, self._worker_config(max_length, 0)),
            limit_bytes=limit.limit_bytes,
            used_bytes=limit.used_bytes,
            source=limit.source,
            memory_fraction=config.memory_fraction,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_length=max_length,
            max_length_is_auto=config.max_length is None,
            max_num_seqs=config.max_num_seqs,
        )

    def _worker_config(self, max_length: int, num_blocks: int) -> WorkerConfig:
        return WorkerConfig(
            device=self._device,
            dtype=self._dtype,
            max_length=max_length,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            block_size=self.config.block_size,
            num_blocks=num_blocks,
            threads=self._threads,
        )

    def _load(self, progress: Progress) -> Worker:
        config = self._worker_config(self.plan.max_length, self.plan.num_blocks)
        worker = self._backend.load(self.info, config, progress)
        if self.config.warmup:
            try:
                warm_up(worker, progress)
            except BaseException:
                worker.close()
                raise
        return worker
