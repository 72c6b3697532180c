"""TextPool: the thread in which long texts are read, while the event loop goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from ...backends.worker import Tokenizer
from ..handlers.base import check_size

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LONG_TEXT = 2048
"""Characters, or bytes of a body; fewer are read on the event loop, in less time than two threads need to
take turns."""
_THREADS = 1
"""Each holds the interpreter's lock for moments while the event loop waits, and a text's tokens in memory.
With two, a stream's gaps beside long texts are twice as long; no model on a CPU takes prompts faster than one
thread reads them."""


class TextPool:
    """Threads for work on texts; what they are given waits in order."""

    def __init__(self, threads: int = _THREADS) -> None:
        """Threads are started as they are needed."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="text")

    async def run(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """What `function` gives, called in one of the threads; what has not begun can be cancelled."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def run_long(
        self,
        size: int,
        function: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """The same, but a text of few characters (`size`) is read at once, without a thread."""
        if size < LONG_TEXT:
            return function(*args, **kwargs)
        return await self.run(function, *args, **kwargs)

    def close(self) -> None:
        """Begin nothing any more; what runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def encode(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True, most_tokens: int | None = None
) -> list[int]:
    """Token ids of a text.

    Raises:
        LimitExceeded: it has more than `most_tokens` by its size alone.
        InvalidArgument: it is no Unicode.
    """
    check_size(tokenizer, text, most_tokens)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)
