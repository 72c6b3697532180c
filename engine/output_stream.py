"""OutputStream: what one request has produced, for readers in threads and in event loops; it never polls."""

import asyncio
import threading
from _thread import LockType
from collections import deque
from collections.abc import AsyncIterator, Iterator
from time import monotonic

import msgspec

from ..errors import InvalidArgument
from ..scheduler import FinishReason, TokenLogprobs
from .request_times import RequestTimes


class Output(msgspec.Struct, frozen=True):
    """What one request has produced since the previous read, in order."""

    token_ids: list[int]
    text: str
    """Text that has become certain; the texts of all reads joined are the output's text."""
    logprobs: list[TokenLogprobs]
    """One entry a token where they were asked for, else none."""
    finish_reason: FinishReason | None = None
    """Set in the read that reaches the end."""


class Wakeups:
    """Readers to wake after a step: one call into each reader's event loop, however many wait there."""

    def __init__(self) -> None:
        self._futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def add(self, future: asyncio.Future[None]) -> None:
        """Wake this future's awaiter with the next flush."""
        loop = future.get_loop()
        futures = self._futures.get(loop)
        if futures is None:
            self._futures[loop] = [future]
        else:
            futures.append(future)

    def flush(self) -> None:
        """Wake everybody added since the last flush."""
        if not self._futures:
            return
        groups, self._futures = self._futures, {}
        for loop, futures in groups.items():
            try:
                loop.call_soon_threadsafe(_set_all, futures)
            except RuntimeError:
                # The reader's loop was closed; nobody is left to be woken in it.
                continue


def _set_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


Waiter = LockType | asyncio.Future[None]
Entry = tuple[int | None, str, TokenLogprobs | None]
"""A token (None with text held back until the end), the text that has become certain with it, its scores."""


class OutputStream:
    """Output of one request: written by the engine's loop, read from any thread or event loop.

    `get`, `get_nowait` and `for` are for threads, `aget` and `async for` for coroutines. Each token is handed
    to exactly one read.
    """

    # Waiting without a lost wake-up: a reader first enters the waiter list and then looks at the entries; the
    # writer first appends the entry and then empties the waiter list. Both are single atomic deque calls.

    def __init__(self, *, num_prompt_tokens: int, arrival: float | None = None) -> None:
        """`arrival` is on the monotonic clock; None means now."""
        self.times = RequestTimes(monotonic() if arrival is None else arrival)
        self.num_prompt_tokens = num_prompt_tokens
        self.num_cached_tokens = 0
        """Prompt tokens that were found in the prefix cache."""
        self.num_output_tokens = 0
        """Tokens generated so far, read or not."""
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        """One entry per prompt token computed so far, if they were asked for; None for the first."""
        self.finish_reason: FinishReason | None = None
        self.stop_cause: int | str | None = None
        """The stop token or stop string that ended the output."""
        self.embedding: tuple[float, ...] | None = None
        """Of a request for one, once it has finished with STOP."""
        self.error: str | None = None
        """What went wrong, when the finish reason is ERROR."""
        self._unread: deque[Entry] = deque()
        self._waiters: deque[Waiter] = deque()
        self._end_waiters: deque[Waiter] = deque()

    # Reading

    @property
    def empty(self) -> bool:
        """True while a read would find nothing new."""
        return not self._unread

    def get(self, timeout: float | None = None) -> Output:
        """Everything produced since the previous read; blocks until there is something.

        After the end, with nothing left, the output is empty and has its finish reason.

        Raises:
            TimeoutError: nothing came within `timeout` seconds. Nothing is lost and the request goes on;
                `stop_request` ends it.
        """
        give_up = None if timeout is None else monotonic() + _seconds(timeout)
        while not self._unread and self.finish_reason is None:
            waiter = threading.Lock()
            waiter.acquire()
            self._waiters.append(waiter)
            if self._unread or self.finish_reason is not None:
                _discard(self._waiters, waiter)
                break
            left = -1.0 if give_up is None else max(give_up - monotonic(), 0.0)
            if not waiter.acquire(timeout=left) and not self._unread:
                _discard(self._waiters, waiter)
                raise TimeoutError(f"no output within {timeout} seconds; the request goes on")
        return self._drain()

    def get_nowait(self) -> Output:
        """Everything produced since the previous read, which may be nothing; never blocks."""
        return self._drain()

    def __iter__(self) -> Iterator[Output]:
        """Outputs as they come, up to and including the one that carries the finish reason."""
        ended = False
        while not ended:
            output = self.get()
            ended = output.finish_reason is not None
            yield output

    async def aget(self, timeout: float | None = None) -> Output:
        """Like `get`, for coroutines of any event loop.

        A read that times out or is cancelled (`asyncio.wait_for`) takes no token with it, and the request
        goes on: `AsyncEngine.stop_request` ends it, and `AsyncEngine.generate_iterator` ends its request by
        itself when its loop is left.

        Raises:
            TimeoutError: nothing came within `timeout` seconds.
        """
        unread, waiters = self._unread, self._waiters
        if timeout is not None and not unread and self.finish_reason is None:
            async with asyncio.timeout(_seconds(timeout)):
                return await self.aget()
        while not unread and self.finish_reason is None:
            future = asyncio.get_running_loop().create_future()
            waiters.append(future)
            if unread or self.finish_reason is not None:
                _discard(waiters, future)
                break
            await _wake_of(future, waiters)
        return self._drain()

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Like `__iter__`, for coroutines."""
        ended = False
        while not ended:
            output = await self.aget()
            ended = output.finish_reason is not None
            yield output

    def wait_finished(self, timeout: float | None = None) -> bool:
        """Block until the request has ended; False after `timeout` seconds."""
        if self.finish_reason is None:
            waiter = threading.Lock()
            waiter.acquire()
            self._end_waiters.append(waiter)
            if self.finish_reason is None and not waiter.acquire(timeout=-1 if timeout is None else timeout):
                _discard(self._end_waiters, waiter)
        return self.finish_reason is not None

    async def await_finished(self) -> None:
        """Wait until the request has ended."""
        while not self._ended():
            future = asyncio.get_running_loop().create_future()
            self._end_waiters.append(future)
            if self._ended():
                _discard(self._end_waiters, future)
                return
            await _wake_of(future, self._end_waiters)

    # Writing, by the engine's loop alone

    def put(
        self, token: int, text: str, logprobs: TokenLogprobs | None, now: float, wakeups: Wakeups
    ) -> None:
        """Hand over one token and the text that has become certain with it."""
        times = self.times
        if times.first_token is None:
            times.first_token = now
        times.last_token = now
        self.num_output_tokens += 1
        self._unread.append((token, text, logprobs))
        if self._waiters:
            _wake(self._waiters, wakeups)

    def finish(
        self,
        reason: FinishReason,
        wakeups: Wakeups,
        now: float,
        *,
        text: str = "",
        stop_cause: int | str | None = None,
        error: str | None = None,
        embedding: tuple[float, ...] | None = None,
    ) -> None:
        """End the output, with the text that was still held back."""
        self.times.finished = now
        self.embedding = embedding
        self.stop_cause = stop_cause
        self.error = error
        if text:
            self._unread.append((None, text, None))
        self.finish_reason = reason
        _wake(self._waiters, wakeups)
        _wake(self._end_waiters, wakeups)

    def _ended(self) -> bool:
        return self.finish_reason is not None

    def _drain(self) -> Output:
        reason = self.finish_reason  # before the entries: with a reason read here all of them are there
        unread = self._unread
        ids: list[int] = []
        texts: list[str] = []
        scores: list[TokenLogprobs] = []
        while unread:
            try:
                token, text, logprobs = unread.popleft()
            except IndexError:  # another reader took the last one
                break
            texts.append(text)
            if token is not None:
                ids.append(token)
            if logprobs is not None:
                scores.append(logprobs)
        return Output(ids, "".join(texts), scores, reason)


def _seconds(timeout: float) -> float:
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout >= 0:
        raise InvalidArgument("timeout", timeout, "seconds from 0, or None")
    return timeout


async def _wake_of(future: asyncio.Future[None], waiters: deque[Waiter]) -> None:
    try:
        await future
    except BaseException:
        _discard(waiters, future)
        raise


def _discard(waiters: deque[Waiter], waiter: Waiter) -> None:
    try:
        waiters.remove(waiter)
    except ValueError:
        return  # the writer has taken it


def _wake(waiters: deque[Waiter], wakeups: Wakeups) -> None:
    while waiters:
        try:
            waiter = waiters.popleft()
        except IndexError:  # the reader has left by itself
            return
        if isinstance(waiter, asyncio.Future):
            wakeups.add(waiter)
        else:
            waiter.release()
