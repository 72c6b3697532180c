"""Request: the one record of what a request is and how far it has come."""

from enum import Enum

from ..kvcache import BlockTable
from .batch import Pooling, SequenceStart
from .sampling_params import SamplingParams


class RequestStatus(Enum):
    """Where a request is. A preempted request is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended; the value is what callers see."""

    STOP = "stop"
    """An end-of-sequence token, a stop token, a stop word or a stop string."""
    LENGTH = "length"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    """Its deadline passed."""
    QUEUE_TIMEOUT = "queue_timeout"
    """It waited too long for its first step."""
    INTERRUPTED = "interrupted"
    """It grew larger than the whole block pool."""
    ERROR = "error"


class Request:
    """One sequence of tokens that is to be continued, or to become an embedding.

    Written by the scheduler alone. There is no prefill or decode state: a request needs a step while
    `num_computed_tokens` is behind `len(token_ids)`, and gets a new token when it has caught up.
    """

    __slots__ = (
        "adapter",
        "arrival",
        "arrival_time",
        "cache_root",
        "deadline",
        "embedding",
        "eos_token_ids",
        "error",
        "fair_charged_tokens",
        "finish_reason",
        "first_scheduled_time",
        "followers",
        "leader",
        "max_tokens",
        "min_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "params",
        "pooling",
        "priority",
        "queue_deadline",
        "request_id",
        "seed",
        "seq",
        "status",
        "stop_cause",
        "stop_ids",
        "table",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        request_id: int,
        prompt: list[int],
        params: SamplingParams,
        *,
        seed: int,
        max_tokens: int,
        cache_root: bytes,
        eos_token_ids: tuple[int, ...] = (),
        priority: int = 0,
        tenant: str = "",
        arrival_time: float = 0.0,
        deadline: float | None = None,
        queue_deadline: float | None = None,
        leader: "Request | None" = None,
        pooling: Pooling | None = None,
        adapter: str | None = None,
    ) -> None:
        """`max_tokens` bounds prompt and output together; times are on the caller's clock, in seconds.

        `leader` is another sample of the same prompt whose prompt blocks this one shares. With a `pooling`
        the prompt becomes an embedding, and no token is generated. `adapter` is the one it runs under, for
        which `cache_root` stands, too.
        """
        self.request_id = request_id
        self.token_ids = list(prompt)
        self.num_prompt_tokens = len(prompt)
        self.params = params
        self.seed = seed
        self.max_tokens = max_tokens
        self.min_tokens = self.num_prompt_tokens + params.min_output_tokens(self.num_prompt_tokens)
        self.cache_root = cache_root
        self.eos_token_ids = () if params.ignore_eos else eos_token_ids
        self.stop_ids = frozenset(self.eos_token_ids) | frozenset(params.stop_token_ids)
        self.priority = priority
        self.tenant = tenant
        self.arrival_time = arrival_time
        self.deadline = deadline
        self.queue_deadline = queue_deadline
        self.leader = leader
        self.followers: list[Request] = []
        self.pooling = pooling
        self.adapter = adapter

        self.arrival = 0
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_cause: int | str | None = None
        """The stop token or the stop string that ended it; None for end of sequence."""
        self.error: str | None = None
        self.embedding: tuple[float, ...] | None = None
        """Of a request with a `pooling`, at its end: as the worker gave it."""
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        """Prompt tokens that its first step found in the cache."""
        self.num_preemptions = 0
        self.first_scheduled_time: float | None = None
        self.fair_charged_tokens = 0
        self.seq: int | None = None
        self.table: BlockTable | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        """True once it has a finish reason."""
        return self.status is RequestStatus.FINISHED

    @property
    def prompt_computed(self) -> bool:
        """True while all of its prompt lies in its blocks."""
        return self.num_computed_tokens >= self.num_prompt_tokens

    def sequence_start(self, seq: int) -> SequenceStart:
        """What a worker is told when the request begins, or resumes, as the sequence `seq`."""
        return SequenceStart(
            seq=seq,
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=self.num_prompt_tokens,
            params=self.params,
            seed=self.seed,
            eos_token_ids=self.eos_token_ids,
            min_output_tokens=self.min_tokens - self.num_prompt_tokens,
            pooling=self.pooling,
            adapter=self.adapter,
        )

    def advance(self, token: int) -> FinishReason | None:
        """Append a generated token and say whether the request ends with it.

        Stops are looked at only from the minimum length on; the length bound holds always.
        """
        self.token_ids.append(token)
        length = len(self.token_ids)
        if length >= self.min_tokens:
            if token in self.stop_ids:
                self.stop_cause = None if token in self.eos_token_ids else token
                return FinishReason.STOP
            if self.params.stop_words_ids and self._ends_with_stop_word():
                return FinishReason.STOP
        return FinishReason.LENGTH if length >= self.max_tokens else None

    def _ends_with_stop_word(self) -> bool:
        output = self.num_output_tokens
        for word in self.params.stop_words_ids:
            if len(word) <= output and tuple(self.token_ids[-len(word) :]) == word:
                self.stop_cause = word[-1]
                return True
        return False
