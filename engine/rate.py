"""Rate: how many of something happen per second, lately."""

from math import exp

_WINDOW = 10.0
"""Seconds after which an amount counts for 1/e."""


class Rate:
    """Exponentially decaying amount over the time it was gathered in."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0
        self._last: float | None = None

    def add(self, amount: int, now: float) -> None:
        """`amount` more happened until `now`, in seconds on a clock that only grows."""
        self._decay(now)
        self._amount += amount

    def per_second(self, now: float) -> float:
        """Present rate; 0 before anything was measured."""
        self._decay(now)
        return self._amount / self._seconds if self._seconds > 0 else 0.0

    def _decay(self, now: float) -> None:
        if self._last is not None and now > self._last:
            passed = now - self._last
            kept = exp(-passed / _WINDOW)
            self._amount *= kept
            self._seconds = self._seconds * kept + passed
        self._last = now
