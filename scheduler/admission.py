"""Admission: which requests may be queued, by their size and by what waits already."""

from collections.abc import Sequence

from ..errors import LimitExceeded, QueueFull
from .config import SchedulerConfig
from .request import Request


class Admission:
    """Counts what is queued: requests that no step has touched yet, and their prompt tokens.

    Requests that were asked for at once (samples, prompts, inputs to embed) count as one until a step has
    touched them all.
    """

    def __init__(self, config: SchedulerConfig, capacity: int, *, chunks_prompts: bool) -> None:
        """`capacity` is the whole block pool in tokens; `chunks_prompts` is WorkerSpec's."""
        self.num_queued = 0
        self.queued_tokens = 0
        self._config = config
        self._capacity = capacity
        self._chunks_prompts = chunks_prompts
        self._left: dict[int, list[int]] = {}  # request id -> how many asked for with it are still queued

    def check(
        self,
        requests: Sequence[Request],
        *,
        pending_requests: int = 0,
        pending_tokens: int = 0,
        retry_after: float = 1.0,
    ) -> None:
        """Raise unless these requests, asked for at once, may be added now.

        `pending` ones were let in but not added yet; they count as queued. With an empty queue the number of
        tokens is not looked at: what is over the bound by itself would be refused for ever.

        Raises:
            LimitExceeded: a prompt, and one token more where it generates, does not fit the whole pool; or a
                prompt does not fit one step of a worker that needs it whole.
            QueueFull: the bounds on queued requests or queued tokens are reached.
        """
        for request in requests:
            self._check_size(request)
        queued, bound = self.num_queued + pending_requests, self._config.max_queued_requests
        if bound is not None and queued >= bound:
            raise QueueFull(f"{queued} requests are queued; at most {bound} may be", retry_after)
        queued_tokens, bound = self.queued_tokens + pending_tokens, self._config.max_queued_tokens
        tokens = sum(request.num_prompt_tokens for request in requests)
        if bound is not None and queued_tokens and queued_tokens + tokens > bound:
            raise QueueFull(
                f"{queued_tokens} prompt tokens are queued and {tokens} more were asked for; "
                f"at most {bound} may be",
                retry_after,
            )

    def enter(self, requests: Sequence[Request]) -> None:
        """Count requests that were asked for at once."""
        self.num_queued += 1
        self.queued_tokens += sum(request.num_prompt_tokens for request in requests)
        left = [len(requests)]
        self._left.update((request.request_id, left) for request in requests)

    def leave(self, request: Request) -> None:
        """A step touches the request for the first time, or it ends before one has."""
        self.queued_tokens -= request.num_prompt_tokens
        left = self._left.pop(request.request_id)
        left[0] -= 1
        if not left[0]:
            self.num_queued -= 1

    def check_integrity(self, queued: Sequence[Request]) -> None:
        """Raise RuntimeError unless exactly the `queued` requests are counted."""
        if {request.request_id for request in queued} != self._left.keys():
            raise RuntimeError("the queued requests are not those that are counted")
        if len({id(left) for left in self._left.values()}) != self.num_queued:
            raise RuntimeError("the count of queued requests is off")
        if sum(request.num_prompt_tokens for request in queued) != self.queued_tokens:
            raise RuntimeError("the count of queued tokens is off")

    def _check_size(self, request: Request) -> None:
        prompt, generates = request.num_prompt_tokens, request.pooling is None
        if prompt + generates > self._capacity:
            raise LimitExceeded(
                f"the prompt has {prompt} tokens; the block pool holds {self._capacity} in all"
            )
        if not self._chunks_prompts and prompt > self._config.max_num_batched_tokens:
            raise LimitExceeded(
                f"the prompt has {prompt} tokens, which this model needs in one step; at most "
                f"{self._config.max_num_batched_tokens} (max_num_batched_tokens) fit one"
            )
