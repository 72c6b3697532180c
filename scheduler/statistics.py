"""What the scheduler counts, and how it is told to others."""

from collections import deque
from dataclasses import dataclass, field

import msgspec

from .request import FinishReason, Request


class SchedulerStats(msgspec.Struct, frozen=True):
    """State at one moment and counters since the start."""

    running: int
    waiting: int
    queued_tokens: int
    prompt_tokens: int
    """Prompt tokens computed, those of a recompute after preemption included."""
    generated_tokens: int
    preemptions: int
    steps: int
    finished: dict[FinishReason, int]


@dataclass(slots=True)
class Counters:
    """What has happened since the start; the scheduler alone writes it."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
    first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=64))
    """Of the latest first tokens: when each came, and how long after its arrival, in seconds."""

    def generated(self, request: Request, now: float) -> None:
        """Count a token that is about to be appended to the request."""
        self.generated_tokens += 1
        if len(request.token_ids) == request.num_prompt_tokens:
            self.first_tokens.append((now, now - request.arrival_time))

    def stats(self, *, running: int, waiting: int, queued_tokens: int) -> SchedulerStats:
        """The counters beside the state at this moment."""
        return SchedulerStats(
            running=running,
            waiting=waiting,
            queued_tokens=queued_tokens,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated_tokens,
            preemptions=self.preemptions,
            steps=self.steps,
            finished=dict(self.finished),
        )
