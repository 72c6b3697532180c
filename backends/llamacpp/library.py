"""llama.cpp as Python finds it: imported once, silent on the terminal, its log lines in Python's logging."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ...errors import NotSupported
from ..machine.openmp import import_with_openmp

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
"""ggml_log_level to logging's; 5 goes on with the line before."""
_CONTINUED = 5


class _LogLines:
    """Puts llama.cpp's pieces of text together into lines, for the logger and for whoever collects errors."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("millstream.llamacpp")
        self._logger.addHandler(logging.NullHandler())  # else warnings nobody listens to go to the terminal
        self._level = logging.DEBUG
        self._text = ""
        self._collectors: list[list[str]] = []

    def write(self, level: int, text: bytes | None, _: Any) -> None:
        """llama.cpp's callback, from any of its threads."""
        if level != _CONTINUED:
            self._flush()
            self._level = _LEVELS.get(level, logging.DEBUG)
        self._text += (text or b"").decode("utf-8", "replace")
        if self._text.endswith("\n"):
            self._flush()

    def _flush(self) -> None:
        line, self._text = self._text.strip(), ""
        if line.strip("."):
            self._logger.log(self._level, "%s", line)
            if self._level >= logging.ERROR:
                for lines in self._collectors:
                    lines.append(line)

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        lines: list[str] = []
        self._collectors.append(lines)
        try:
            yield lines
        finally:
            self._flush()
            # By identity: two collectors may hold equal lines.
            self._collectors = [other for other in self._collectors if other is not lines]


class _Library:
    """The module, and what must live as long as llama.cpp may call it."""

    def __init__(self) -> None:
        try:
            self.api: Any = import_with_openmp("llama_cpp.llama_cpp")
        except ImportError as error:
            raise NotSupported(
                "GGUF models need llama-cpp-python, which is not installed: pip install llama-cpp-python gguf"
            ) from error
        except (OSError, RuntimeError) as error:
            raise NotSupported(f"llama-cpp-python is installed but does not load: {error}") from error
        self.log = _LogLines()
        self._callback = self.api.llama_log_callback(self.log.write)
        self.api.llama_log_set(self._callback, None)
        self.api.llama_backend_init()


@cache
def _library() -> _Library:
    return _Library()


def load_library() -> Any:
    """llama.cpp's C functions, as the module `llama_cpp.llama_cpp` has them.

    Raises:
        NotSupported: llama-cpp-python is not installed, and then the message names the command that
            installs it; or it does not load.
    """
    return _library().api


@contextmanager
def error_lines() -> Iterator[list[str]]:
    """Collects the errors that llama.cpp logs inside, one line each; they are logged all the same."""
    with _library().log.collect() as lines:
        yield lines
