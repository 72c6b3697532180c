"""LazyHeap: a priority queue whose entries may die in place."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from .request import Request

Key = TypeVar("Key", float, tuple[int, int])


class LazyHeap(Generic[Key]):
    """Requests by key, smallest first; those that `is_live` denies are skipped and in time dropped.

    Memory stays within a constant factor of the live entries, however many die unseen.
    """

    def __init__(self, is_live: Callable[[Request], bool]) -> None:
        self._is_live = is_live
        self._entries: list[tuple[Key, int, Request]] = []
        self._pushes = 0
        self._sweep_at = 64

    def push(self, key: Key, request: Request) -> None:
        """Add an entry."""
        if len(self._entries) >= self._sweep_at:
            self._entries = [entry for entry in self._entries if self._is_live(entry[2])]
            heapify(self._entries)
            self._sweep_at = 2 * len(self._entries) + 64
        self._pushes += 1
        heappush(self._entries, (key, self._pushes, request))

    def peek(self) -> tuple[Key, Request] | None:
        """Smallest live entry, or None."""
        entries = self._entries
        while entries and not self._is_live(entries[0][2]):
            heappop(entries)
        return (entries[0][0], entries[0][2]) if entries else None

    def pop(self) -> None:
        """Remove what `peek` returned."""
        heappop(self._entries)
