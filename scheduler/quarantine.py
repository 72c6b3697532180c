"""Quarantine: requests that were in a step that failed, until each has completed one by itself."""

from collections.abc import Iterable

from .request import Request


class Quarantine:
    """Suspects in the order in which they run, each alone: who breaks a step breaks only its own."""

    def __init__(self) -> None:
        self._suspects: list[Request] = []

    def next(self) -> Request | None:
        """The one to run alone now; None when nobody is under suspicion."""
        return self._suspects[0] if self._suspects else None

    def add(self, requests: Iterable[Request]) -> None:
        """Their common step has failed."""
        self._suspects.extend(request for request in requests if request not in self._suspects)

    def step_completed(self) -> None:
        """The one that ran alone, if there was one, is cleared."""
        if self._suspects:
            self._suspects.pop(0)

    def discard(self, request: Request) -> None:
        """The request has ended."""
        if request in self._suspects:
            self._suspects.remove(request)
