"""What every command shares at a terminal: exit statuses, error lines and progress on stderr."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, NoReturn

from ...errors import MillstreamError

BAD_INPUT = 2
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13

_REDRAW_SECONDS = 0.1


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line and takes no abbreviated flags."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """End the command with BAD_INPUT."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (--help shows what is allowed)\n")


def command_status(command: Callable[[], int]) -> int:
    """Run `command` and turn the ways it can end into an exit status and at most one line on stderr.

    What is no MillstreamError and no trouble with a file is a defect and is raised on.
    """
    try:
        status = command()
        sys.stdout.flush()
        return status
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except MillstreamError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> int:
    print(f"millstream: error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


@contextmanager
def interrupt_at_once() -> Iterator[None]:
    """Ctrl-C ends the process there and then, for as long as nothing but a model is being loaded.

    The threads that load cannot be ended, and the interpreter waits for threads at its end.
    """

    def end(*_: object) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_line(label: str) -> Iterator[Callable[[float], None]]:
    """A line with a percentage on stderr, gone at the end; nothing where stderr is no terminal."""
    with _line() as show:
        yield lambda share: show(f"{label} {share:4.0%}")


@contextmanager
def loading_line(model: str) -> Iterator[Callable[[str, float], None]]:
    """Like `progress_line`, for the stages of loading a model."""
    with _line() as show:
        yield lambda stage, share: show(f"{model}: {stage} {share:4.0%}")


@contextmanager
def counting_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that is told how many more are done; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    drawn = -_REDRAW_SECONDS

    def show(text: str) -> None:
        nonlocal drawn
        if monotonic() - drawn >= _REDRAW_SECONDS:
            drawn = monotonic()
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
