"""Calling a function that recurses deeply, on a thread with as large a stack as it needs."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")
_GRAIN = 1 << 20
_STACK_SIZE_LOCK = threading.Lock()
"""threading.stack_size holds for the whole process; only here is it changed."""


def call_with_stack(function: Callable[[], _Result], num_bytes: int) -> _Result:
    """What `function` gives or raises, from a thread whose stack has at least `num_bytes`.

    The stack takes memory only as far as it is used.

    Raises:
        MemoryError: there is no room for such a stack.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="millstream-deep-stack", daemon=True)
    with _STACK_SIZE_LOCK:
        before = threading.stack_size(-(-num_bytes // _GRAIN) * _GRAIN)
        try:
            thread.start()
        except RuntimeError as error:
            raise MemoryError(f"no room for a stack of {num_bytes} bytes") from error
        finally:
            threading.stack_size(before)
    return future.result()
