"""ThreadChooser: how many threads a step takes, by how long steps of its size took."""

from collections import deque
from dataclasses import dataclass, field

_TRIES = 3
"""Steps by which a number of threads is judged; the quickest of them counts, since what else runs on the
machine makes steps longer and never shorter."""
_AGAIN = 256
"""Steps of one size between two trials of another number of threads."""
_GAIN = 0.95
"""So much of the time another number must take, at most, to be chosen: what differs less is noise."""
_HOPELESS = 1.5
"""So many times as long as before, and a trial ends with its first step."""


@dataclass(slots=True)
class _Size:
    """Steps of one size."""

    best: int
    rivals: deque[int]
    """The other numbers, in the order in which they are tried."""
    untried: int
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_TRIES))
    """Of the last steps with the best number, and of the others by which a rival is judged."""
    rival: deque[float] | None = None
    """None while none is on trial."""
    steps: int = 0
    """Since the last trial."""

    @property
    def threads(self) -> int:
        return self.best if self.rival is None else self.rivals[0]

    def observe(self, seconds: float) -> None:
        if self.rival is None:
            self.seconds.append(seconds)
            self.steps += 1
            if len(self.seconds) == _TRIES and self.rivals and (self.untried or self.steps >= _AGAIN):
                self.rival = deque()
            return
        self.rival.append(seconds)
        before = min(self.seconds)
        if len(self.rival) == _TRIES and min(self.rival) < _GAIN * before:
            self.best, self.rivals[0] = self.rivals[0], self.best
            self.seconds.extend(self.rival)
        elif len(self.rival) < _TRIES and min(self.rival) < _HOPELESS * before:
            return
        self.rivals.rotate(-1)
        self.untried = max(self.untried - 1, 0)
        self.rival, self.steps = None, 0


class ThreadChooser:
    """Chooses among 1, 2, 4, … and the most threads, for each size of steps by itself.

    It begins with the most and tries the others on the first steps of a size, unless a smaller size needs the
    most; later, now and then, one of them: a machine that others use, or no longer use, has another best
    number. Whoever asks must get the same results from any number of threads.
    """

    def __init__(self, most: int, *, tunes: bool) -> None:
        """Without `tunes` every step takes `most` threads."""
        self._most = most
        self._others = [1 << i for i in reversed(range((most - 1).bit_length()))] if tunes else []
        self._sizes: dict[int, _Size] = {}

    @property
    def learning_steps(self) -> int:
        """Steps of one size after which every number of threads has been tried on it."""
        return _TRIES * (1 + len(self._others)) if self._others else 1

    def choose(self, num_tokens: int) -> int:
        """Threads for a step of so many tokens, one or more."""
        return self._of(num_tokens).threads

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn what a step took, with the threads that `choose` gave for it."""
        if self._others:
            self._of(num_tokens).observe(seconds)

    def _of(self, num_tokens: int) -> _Size:
        bound = size_bound(num_tokens)
        size = self._sizes.get(bound)
        if size is None:
            untried = 0 if self._needs_most(bound) else len(self._others)
            size = self._sizes[bound] = _Size(self._most, deque(self._others), untried)
        return size

    def _needs_most(self, bound: int) -> bool:
        """Whether a smaller size has been found to be fastest with the most threads."""
        return any(
            smaller < bound and not size.untried and size.best == self._most
            for smaller, size in self._sizes.items()
        )


def size_bound(num_tokens: int) -> int:
    """Most tokens of a step that counts as one of the same size: the next power of two."""
    return 1 << (num_tokens - 1).bit_length()
