"""Scheduler: gives each chosen request some tokens of every step so that it catches up."""

from bisect import insort
from collections.abc import Mapping, Set

from ..kvcache import BlockTable, KVCache
from .admission import Admission
from .batch import Batch, Chunk, Pooling, SequenceStart, StepResult, Wants
from .config import Eviction, SchedulerConfig
from .lazy_heap import LazyHeap
from .policy import eviction_rank, make_queue
from .quarantine import Quarantine
from .request import FinishReason, Request, RequestStatus
from .statistics import Counters, SchedulerStats


class Scheduler:
    """Requests, from `add` to a finish reason, over one KVCache. Never looks at a clock: `now` is passed in.

    The caller alternates `schedule` (a Batch, or None when nothing can run) and `update` with the worker's
    result; `add`, `finish` and `expire` are called between the two, never during a step. Whatever ends,
    for whatever reason, is handed out once by `take_finished`.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVCache,
        *,
        max_num_seqs: int | None = None,
        shares_within_step: bool = True,
        chunks_prompts: bool = True,
        mixes_adapters: bool = True,
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        """`max_num_seqs` narrows the configured number to what the worker offers.

        `shares_within_step`, `chunks_prompts` and `mixes_adapters` are WorkerSpec's.
        """
        self.admission = Admission(config, kv.capacity, chunks_prompts=chunks_prompts)
        self.counters = Counters()
        self._kv = kv
        self._max_num_seqs = min(config.max_num_seqs, max_num_seqs or config.max_num_seqs)
        self._max_num_batched_tokens = config.max_num_batched_tokens
        self._shares_within_step = shares_within_step
        self._chunks_prompts = chunks_prompts
        self._mixes_adapters = mixes_adapters
        self._queue = make_queue(config.policy, tenant_weights)
        self._rank = eviction_rank(config.eviction)
        self._rank_changes = config.eviction is Eviction.MAX_LENGTH

        self._requests: dict[int, Request] = {}
        self._running: list[Request] = []  # by rank: the last is preempted first
        self._by_seq: dict[int, Request] = {}
        self._free_seqs = list(range(self._max_num_seqs))[::-1]
        self._retired: list[int] = []
        self._quarantine = Quarantine()
        self._turns: dict[str | None, int] = {}  # adapter -> the step it last had, where they cannot mix
        self._deadlines: LazyHeap[float] = LazyHeap(lambda request: not request.finished)
        self._finished: list[Request] = []

        self._arrivals = 0

    # Between steps

    @property
    def has_work(self) -> bool:
        """True while any request has not ended."""
        return bool(self._requests)

    def add(self, *requests: Request) -> None:
        """Take new requests in that were asked for at once; they count as one in the queue."""
        self.admission.enter(requests)
        for request in requests:
            self._add(request)

    def finish(self, request: Request, reason: FinishReason, now: float) -> None:
        """End a request wherever it is; nothing happens when it has ended already."""
        if request.finished:
            return
        if request.first_scheduled_time is None:
            self.admission.leave(request)
        if request.table is not None:
            self._running.remove(request)
            self._release(request, now)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        self._release_followers(request)
        request.leader = None
        self._quarantine.discard(request)
        del self._requests[request.request_id]
        self.counters.finished[reason] += 1
        self._finished.append(request)

    def expire(self, now: float) -> None:
        """End every request whose deadline or queue deadline has passed."""
        while (head := self._deadlines.peek()) is not None and head[0] <= now:
            self._deadlines.pop()
            request = head[1]
            if request.deadline is not None and request.deadline <= now:
                self.finish(request, FinishReason.TIMEOUT, now)
            elif request.first_scheduled_time is None:
                self.finish(request, FinishReason.QUEUE_TIMEOUT, now)

    def next_deadline(self) -> float | None:
        """When `expire` may next have something to do."""
        head = self._deadlines.peek()
        return None if head is None else head[0]

    def live_requests(self) -> list[Request]:
        """Every request that has not ended."""
        return list(self._requests.values())

    def take_finished(self) -> list[Request]:
        """Requests that ended since the last call."""
        finished, self._finished = self._finished, []
        return finished

    # A step

    def schedule(self, now: float) -> Batch | None:
        """Choose the next step: running requests first, then waiting ones while budget and blocks last.

        None when there is nothing to compute. Sequences that ended travel as `retired` with the next batch.
        """
        chunks: list[Chunk] = []
        started: list[SequenceStart] = []
        suspect = self._quarantine.next()
        if suspect is not None:
            self._schedule_alone(suspect, chunks, started, now)
        elif self._mixes_adapters:
            budget = self._schedule_running(list(self._running), chunks, now)
            self._schedule_waiting(chunks, started, budget, now)
        else:
            self._schedule_one_adapter(chunks, started, now)
        if not chunks:
            return None
        self.counters.steps += 1
        retired, self._retired = self._retired, []
        return Batch(tuple(chunks), tuple(started), tuple(retired))

    def update(self, batch: Batch, result: StepResult, now: float) -> list[Request]:
        """Book the step's tokens; returns the requests of the batch's chunks, in their order."""
        self._quarantine.step_completed()
        self._kv.forget(result.lost_blocks)
        served = [self._by_seq[chunk.seq] for chunk in batch.chunks]
        for chunk, request, token in zip(batch.chunks, served, result.token_ids, strict=True):
            if chunk.seq in result.unplaced:
                self._preempt(request, now)
                continue
            computed = request.num_computed_tokens + len(chunk.tokens)
            request.num_computed_tokens = computed
            if not self._shares_within_step and request.table is not None:
                self._kv.register(request.table, request.token_ids, computed, now)
            if request.followers and request.prompt_computed:
                self._release_followers(request)
            if token is None:
                if chunk.seq in result.errors:
                    request.error = result.errors[chunk.seq]
                    self.finish(request, FinishReason.ERROR, now)
                elif chunk.wants is Wants.EMBEDDING:
                    request.embedding = result.embeddings[chunk.seq]
                    self.finish(request, FinishReason.STOP, now)
                continue
            self.counters.generated(request, now)
            reason = request.advance(token)
            if reason is None and len(request.token_ids) > self._kv.capacity:
                reason = FinishReason.INTERRUPTED
            if reason is not None:
                self.finish(request, reason, now)
        return served

    def fail(self, batch: Batch, message: str, now: float) -> None:
        """The worker could not execute `batch` and may have lost its memory.

        A request that failed alone ends with an error. Those that failed together go back to waiting, keep
        their tokens, and each runs alone until it has completed a step: so the guilty one is found, and
        nobody else pays with more than time.
        """
        failed = [self._by_seq[chunk.seq] for chunk in batch.chunks]
        for request in list(self._running):
            self._preempt(request, now)
        self._kv.drop_prefixes()
        if len(failed) == 1:
            failed[0].error = message
            self.finish(failed[0], FinishReason.ERROR, now)
        else:
            self._quarantine.add(failed)

    # What a step is made of

    def _schedule_one_adapter(self, chunks: list[Chunk], started: list[SequenceStart], now: float) -> None:
        """A step under one adapter: of those that are waited for, the one that was served longest ago."""
        wanted = {request.adapter for request in self._running}
        head = self._queue.peek()
        if head is not None:
            wanted.add(head.adapter)
        self._turns = {adapter: self._turns.get(adapter, 0) for adapter in wanted}
        for adapter in sorted(wanted, key=lambda name: (self._turns[name], name or "")):
            same = [request for request in self._running if request.adapter == adapter]
            budget = self._schedule_running(same, chunks, now)
            self._schedule_waiting(chunks, started, budget, now, {adapter})
            if chunks:
                self._turns[adapter] = self.counters.steps + 1
                return

    def _schedule_running(self, chosen: list[Request], chunks: list[Chunk], now: float) -> int:
        """Give chosen running requests their tokens; the budget left, 0 when somebody had to be preempted."""
        if self._rank_changes:
            self._running.sort(key=self._rank)
            chosen.sort(key=self._rank)
        block_size = self._kv.block_size
        budget = self._max_num_batched_tokens
        preemptions = self.counters.preemptions
        behind = len(chosen)
        for request in chosen:
            behind -= 1
            table = request.table
            if table is None:  # it made room for one before it
                continue
            # A chunk leaves one token for each request behind it, so that no decode waits for a prompt.
            num_tokens = min(len(request.token_ids) - request.num_computed_tokens, budget - behind)
            needed = request.num_computed_tokens + num_tokens
            if needed > len(table.blocks) * block_size and not self._make_room(request, needed, now):
                continue
            chunks.append(self._chunk(request, table, num_tokens, now))
            budget -= num_tokens
        return budget if self.counters.preemptions == preemptions else 0

    def _make_room(self, request: Request, num_tokens: int, now: float) -> bool:
        """Extend the request's table, preempting others if need be; False when it had to go itself.

        The last running request goes first. It has no chunk yet in this step, so those made stay valid.
        No request is larger than the pool (`update` sees to that), so one that runs alone always fits.
        """
        table = request.table
        assert table is not None  # the caller schedules a running request
        while not self._kv.extend(table, num_tokens):
            victim = self._running[-1]
            self._preempt(victim, now)
            if victim is request:
                return False
        return True

    def _schedule_waiting(
        self,
        chunks: list[Chunk],
        started: list[SequenceStart],
        budget: int,
        now: float,
        adapters: Set[str | None] | None = None,
    ) -> None:
        """Admit waiting requests in the queue's order until budget, sequences or blocks run out.

        One that runs under none of `adapters`, or needs more of a step than is left, is waited for, not
        overtaken.
        """
        while budget > 0 and self._free_seqs:
            request = self._queue.peek()
            if request is None or (adapters is not None and request.adapter not in adapters):
                return
            if not self._chunks_prompts and len(request.token_ids) > budget:
                return
            # One free block for each running request keeps an admission from being undone a step later.
            table = self._open_table(request, now, headroom=len(self._running))
            if table is None:
                return
            self._queue.pop()
            num_tokens = min(len(request.token_ids) - table.num_cached_tokens, budget)
            started.append(self._admit(request, table, now))
            chunks.append(self._chunk(request, table, num_tokens, now))
            budget -= num_tokens

    def _schedule_alone(
        self, request: Request, chunks: list[Chunk], started: list[SequenceStart], now: float
    ) -> None:
        """A step of one request, with everybody else's blocks at its disposal."""
        table = request.table
        while table is None:
            table = self._open_table(request, now, headroom=0) if self._free_seqs else None
            if table is None:
                self._preempt(self._running[-1], now)
            else:
                started.append(self._admit(request, table, now))
        num_tokens = min(len(request.token_ids) - request.num_computed_tokens, self._max_num_batched_tokens)
        chunks.append(self._chunk(request, table, num_tokens, now))

    def _open_table(self, request: Request, now: float, *, headroom: int) -> BlockTable | None:
        leader = request.leader
        if leader is not None and leader.table is not None and leader.prompt_computed:
            shared = leader.num_prompt_tokens
            return self._kv.fork(leader.table, shared, request.token_ids, headroom=headroom)
        # Log-probabilities and hidden states come only from computing a prompt; its last token always is.
        match_prefix = request.params.prompt_logprobs is None and request.pooling in (None, Pooling.LAST)
        return self._kv.admit(
            request.cache_root, request.token_ids, now, match_prefix=match_prefix, headroom=headroom
        )

    def _admit(self, request: Request, table: BlockTable, now: float) -> SequenceStart:
        if request.first_scheduled_time is None:
            self.admission.leave(request)
            request.first_scheduled_time = now
            request.num_cached_tokens = min(table.num_cached_tokens, request.num_prompt_tokens)
        request.leader = None
        request.status = RequestStatus.RUNNING
        request.table = table
        request.num_computed_tokens = table.num_cached_tokens
        request.seq = seq = self._free_seqs.pop()
        self._by_seq[seq] = request
        insort(self._running, request, key=self._rank)
        return request.sequence_start(seq)

    def _chunk(self, request: Request, table: BlockTable, num_tokens: int, now: float) -> Chunk:
        start = request.num_computed_tokens
        end = start + num_tokens
        token_ids = request.token_ids
        seq = request.seq
        assert seq is not None  # only running requests get chunks
        if start < request.num_prompt_tokens:
            self.counters.prompt_tokens += min(end, request.num_prompt_tokens) - start
        if self._shares_within_step and end // self._kv.block_size > table.num_registered:
            self._kv.register(table, token_ids, end, now)
        self._queue.charge(request, num_tokens)
        wants = Wants.NOTHING
        if end == len(token_ids):
            wants = Wants.TOKEN if request.pooling is None else Wants.EMBEDDING
        return Chunk(seq, tuple(token_ids[start:end]), start, table.snapshot(), wants)

    def _preempt(self, request: Request, now: float) -> None:
        """Back to waiting: the blocks go, the tokens stay, and all of them are computed again later."""
        self._running.remove(request)
        self._release(request, now)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        self.counters.preemptions += 1
        self._queue.push(request)

    def _release(self, request: Request, now: float) -> None:
        """Give back the table and the sequence id of a request that has left `_running`."""
        assert request.table is not None  # only running requests are released
        assert request.seq is not None  # likewise
        self._kv.free(request.table, now)
        self._free_seqs.append(request.seq)
        self._retired.append(request.seq)
        del self._by_seq[request.seq]
        request.table = None
        request.seq = None
        request.num_computed_tokens = 0

    def _add(self, request: Request) -> None:
        """One with a live leader joins the queue when the leader's prompt is done."""
        self._arrivals += 1
        request.arrival = self._arrivals
        self._requests[request.request_id] = request
        for deadline in (request.deadline, request.queue_deadline):
            if deadline is not None:
                self._deadlines.push(deadline, request)
        leader = request.leader
        if leader is not None and not leader.finished and not leader.prompt_computed:
            leader.followers.append(request)
        else:
            self._queue.push(request)

    def _release_followers(self, leader: Request) -> None:
        followers, leader.followers = leader.followers, []
        for follower in followers:
            if not follower.finished:
                self._queue.push(follower)

    # Seen from outside

    def stats(self) -> SchedulerStats:
        """State at this moment and counters since the start."""
        return self.counters.stats(
            running=len(self._running),
            waiting=len(self._requests) - len(self._running),
            queued_tokens=self.admission.queued_tokens,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless requests, sequence ids and blocks agree with one another."""
        self._kv.check_integrity()
        if sorted([*self._free_seqs, *self._by_seq]) != list(range(self._max_num_seqs)):
            raise RuntimeError("free and used sequence ids are not all of them once")
        if {id(request) for request in self._running} != {id(request) for request in self._by_seq.values()}:
            raise RuntimeError("running requests and used sequence ids disagree")
        if not self._rank_changes and self._running != sorted(self._running, key=self._rank):
            raise RuntimeError("running requests are out of order")
        for request in self._requests.values():
            running = request.status is RequestStatus.RUNNING
            if (
                request.finished
                or running != (request.table is not None)
                or running != (request.seq is not None)
            ):
                raise RuntimeError(
                    f"request {request.request_id} is {request.status.value} but holds otherwise"
                )
        queued = [request for request in self._requests.values() if request.first_scheduled_time is None]
        self.admission.check_integrity(queued)
