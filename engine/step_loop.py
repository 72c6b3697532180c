"""StepLoop: the asyncio task that turns one model's scheduler, worker and outputs, step after step."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from time import monotonic

from ..backends.machine.threads import size_bound
from ..backends.worker import Worker
from ..errors import ModelStateError, WorkerError
from ..scheduler import Batch, FinishReason, Request, Scheduler, StepResult
from .histogram import STEP_SECOND_BOUNDS, STEP_TOKEN_BOUNDS, Histogram
from .output_stream import OutputStream
from .outputs import OutputProcessor, OutputState
from .rate import Rate

logger = logging.getLogger(__name__)

Change = Callable[[float], None]
"""A change to the scheduler, told the time; applied between two steps."""


class StepLoop:
    """Owns the scheduler and the outputs of one running model; the worker is called in `executor`.

    Other threads reach in through `submit` and `cancel` alone. What they ask for waits in an inbox and is
    applied between two steps, so neither the scheduler nor the open outputs need a lock.
    """

    def __init__(self, worker: Worker, scheduler: Scheduler, executor: ThreadPoolExecutor) -> None:
        self._worker = worker
        self._executor = executor
        self._outputs = OutputProcessor()
        self._inbox: deque[Change] = deque()
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._idle = True
        self._admission = threading.Lock()
        self._submitted: deque[Sequence[OutputState]] = deque()
        """Let in and not added yet, in the inbox's order."""
        self._pending_tokens = 0
        self._closed: str | None = None
        self._busy_since: float | None = None
        self.failure: str | None = None
        """Why the loop has ended by itself; None while it runs, and when it was stopped."""
        self.scheduler = scheduler
        self.prompt_rate = Rate()
        self.generated_rate = Rate()
        self.num_sequence_steps = 0
        """Chunks computed since the start: over the number of steps, the mean batch size."""
        self.worker_seconds = 0.0
        """Spent in the worker since the start; what is left of the time is the engine's own, or idle."""
        self.started = monotonic()
        self.step_tokens = Histogram(STEP_TOKEN_BOUNDS)
        """Tokens computed per step."""
        self.step_threads: dict[int, int] = {}
        """By the most tokens of a size of steps: the threads that the last one of that size took."""
        self.step_seconds = Histogram(STEP_SECOND_BOUNDS)
        """From the choice of a step's tokens to the worker's answer."""

    # From any thread

    def stalled_seconds(self, now: float) -> float:
        """For how long there has been work and no step has ended; 0 while there is no work."""
        since = self._busy_since
        return 0.0 if since is None else max(now - since, 0.0)

    def submit(self, outputs: Sequence[OutputState]) -> None:
        """Take what was asked for at once: all of it or nothing; it counts as one queued request.

        Raises:
            LimitExceeded, QueueFull: see Admission.check.
            ModelStateError: the loop has ended.
        """
        requests = [output.request for output in outputs]
        with self._admission:
            if self._closed is not None:
                raise ModelStateError(self._closed)
            self.scheduler.admission.check(
                requests,
                pending_requests=len(self._submitted),
                pending_tokens=self._pending_tokens,
                retry_after=self._retry_after(),
            )
            self._pending_tokens += sum(request.num_prompt_tokens for request in requests)
            self._submitted.append(outputs)
            self._post(self._add_submitted)

    def cancel(self, requests: Sequence[Request]) -> None:
        """End these requests at the next step; those that have ended are left alone."""
        self._post(lambda now: self._finish(requests, FinishReason.CANCELLED, now))

    def cancel_all(self) -> None:
        """End every request at the next step."""
        self._post(lambda now: self._finish(self.scheduler.live_requests(), FinishReason.CANCELLED, now))

    # The loop

    async def run(self) -> None:
        """Step while there is work, sleep while there is none; ends by cancellation."""
        try:
            while True:
                await self.step()
        except asyncio.CancelledError:
            self._end("the model was stopped")
            raise
        except BaseException as error:
            logger.exception("the step loop has failed")
            self.failure = f"the step loop has failed: {error!r}"
            self._end(self.failure, FinishReason.ERROR)
            raise

    async def drain(self, timeout: float | None) -> None:
        """Wait until every request has ended; after `timeout` seconds cancel those that have not."""
        try:
            await asyncio.wait_for(self._all_finished(), timeout)
        except TimeoutError:
            self.cancel_all()
            await self._all_finished()

    def live_streams(self) -> list[OutputStream]:
        """Output streams of the requests that have been submitted and have not ended."""
        return [output.stream for output in self._live_outputs()]

    def live_adapters(self) -> set[str | None]:
        """Adapters that requests which have been submitted and have not ended run under."""
        return {output.request.adapter for output in self._live_outputs()}

    def _live_outputs(self) -> list[OutputState]:
        """Open outputs, and those still in the inbox; on the loop's thread, which alone moves them."""
        with self._admission:
            return [*self._outputs.live(), *chain.from_iterable(self._submitted)]

    async def _all_finished(self) -> None:
        while streams := self.live_streams():
            for stream in streams:
                await stream.await_finished()

    async def step(self) -> None:
        """One token for everybody: schedule, execute, update, publish."""
        self._apply_changes()
        started = monotonic()
        batch = self.scheduler.schedule(started)
        if batch is None:
            self._outputs.wake()
            await self._sleep()
            return
        self._busy_since = started
        try:
            computing = self._loop.run_in_executor(self._executor, self._execute, batch)
        except RuntimeError as error:
            # Executors take nothing more once the interpreter is going down.
            raise asyncio.CancelledError from error
        try:
            result = await computing
        except WorkerError as error:
            logger.error("a step of %d sequences failed: %s", len(batch.chunks), error)
            self.scheduler.fail(batch, str(error), monotonic())
        else:
            now = monotonic()
            self._book(batch, result, now)
            self.step_seconds.observe(now - started)
        self._close_finished()

    def _execute(self, batch: Batch) -> StepResult:
        """The worker's step; whatever it raises is a worker failure."""
        began = monotonic()
        try:
            # Readers of the step before are woken from here: woken any earlier, they would keep the
            # interpreter to themselves for milliseconds before this thread could begin.
            self._loop.call_soon_threadsafe(self._outputs.wake)
            return self._worker.execute(batch)
        except WorkerError:
            raise
        except Exception as error:
            logger.exception("the worker has raised")
            raise WorkerError(f"the worker has raised {error!r}") from error
        finally:
            self.worker_seconds += monotonic() - began

    def _book(self, batch: Batch, result: StepResult, now: float) -> None:
        served = self.scheduler.update(batch, result, now)
        stopped = self._outputs.publish(batch, served, result, now)
        self._finish(stopped, FinishReason.STOP, now)
        generated = len(result.token_ids) - result.token_ids.count(None)
        self.generated_rate.add(generated, now)
        num_tokens = batch.num_tokens
        self.prompt_rate.add(num_tokens - generated, now)
        self.step_tokens.observe(num_tokens)
        if result.threads:
            self.step_threads[size_bound(num_tokens)] = result.threads
        self.num_sequence_steps += len(batch.chunks)

    def _apply_changes(self) -> None:
        now = monotonic()
        while self._inbox:
            self._inbox.popleft()(now)
        self.scheduler.expire(now)
        self._close_finished()

    def _close_finished(self) -> None:
        self._outputs.close(self.scheduler.take_finished(), monotonic())

    async def _sleep(self) -> None:
        """Until something is posted or the next deadline."""
        self._idle = True
        if not self.scheduler.has_work:
            # Before the look into the inbox: whoever posts afterwards finds None and sets it.
            self._busy_since = None
        if not self._inbox:
            deadline = self.scheduler.next_deadline()
            timeout = None if deadline is None else max(deadline - monotonic(), 0.0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)
        self._changed.clear()
        self._idle = False

    # Changes

    def _post(self, change: Change) -> None:
        if self._closed is not None:
            return
        self._inbox.append(change)
        if self._busy_since is None:
            self._busy_since = monotonic()
        if self._idle:
            self._loop.call_soon_threadsafe(self._changed.set)

    def _add_submitted(self, now: float) -> None:
        """Open the outputs of what was submitted first, and let the scheduler have its requests."""
        with self._admission:
            outputs = self._submitted.popleft()
            for output in outputs:
                self._outputs.open(output)
            requests = [output.request for output in outputs]
            self.scheduler.add(*requests)
            self._pending_tokens -= sum(request.num_prompt_tokens for request in requests)

    def _finish(self, requests: Sequence[Request], reason: FinishReason, now: float) -> None:
        for request in requests:
            self.scheduler.finish(request, reason, now)

    def _end(self, why: str, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Refuse what comes, end what is there: nobody is left waiting for a loop that is gone."""
        with self._admission:
            self._closed = why
        self._idle = False
        self._busy_since = None
        self._apply_changes()
        now = monotonic()
        for request in self.scheduler.live_requests():
            request.error = why if reason is FinishReason.ERROR else None
            self.scheduler.finish(request, reason, now)
        self._close_finished()
        self._outputs.wake()

    def _retry_after(self) -> float:
        """Seconds until the queued prompts will have been computed, at the measured rate."""
        rate = self.prompt_rate.per_second(monotonic())
        queued = self.scheduler.admission.queued_tokens + self._pending_tokens
        return min(max(queued / rate, 1.0), 600.0) if rate > 0 else 1.0
