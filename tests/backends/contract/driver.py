"""Drives any worker with Batches, as a scheduler does, over blocks in random order."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from millstream.backends.worker import Worker
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, StepResult, TokenLogprobs, Wants
from millstream.scheduler.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0)


@dataclass(eq=False)
class Live:
    """A sequence in the worker: its tokens, how many of them are computed, and where."""

    seq: int
    tokens: list[int]
    num_prompt_tokens: int
    blocks: list[int]
    params: SamplingParams
    computed: int = 0
    shared: int = 0
    """Blocks at the front that belong to somebody else."""
    is_new: bool = True
    pooling: Pooling | None = None
    """For one that is to become an embedding."""
    embedding: tuple[float, ...] | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]


class Driver:
    """Sequences over the worker's pool. Whatever a step gives back is checked against what was asked."""

    def __init__(self, worker: Worker, seed: int = 0) -> None:
        self.worker = worker
        self.random = random.Random(seed)
        self.lost: set[int] = set()
        """Free blocks that the worker has reported lost."""
        self._free = list(range(worker.spec.num_blocks))
        self.random.shuffle(self._free)
        self._seqs = list(range(worker.spec.max_num_seqs))
        self._live: list[Live] = []
        self._retired: list[int] = []

    def begin(
        self,
        tokens: Sequence[int],
        *,
        params: SamplingParams = GREEDY,
        generated: int = 0,
        prefix: Live | None = None,
        blocks: Sequence[int] | None = None,
        pooling: Pooling | None = None,
    ) -> Live:
        """A sequence that enters the worker with its next step.

        The last `generated` of its tokens count as output. It reads the full blocks that its tokens have in
        common with those of `prefix`, if they are not lost, but never that of its last token. `blocks` are
        taken as its table instead of free ones.
        """
        shared = _common(tokens, prefix.tokens[: prefix.computed]) if prefix is not None else 0
        shared = min(shared, len(tokens) - 1) // self.block_size
        while prefix is not None and self.lost.intersection(prefix.blocks[:shared]):
            shared -= 1
        table = list(prefix.blocks[:shared]) if prefix is not None else []
        for block in table:
            if block in self._free:
                self._free.remove(block)
        live = Live(
            seq=self._seqs.pop(),
            tokens=list(tokens),
            num_prompt_tokens=len(tokens) - generated,
            blocks=table if blocks is None else list(blocks),
            params=params,
            computed=shared * self.block_size,
            shared=shared,
            pooling=pooling,
        )
        for block in live.blocks[shared:]:
            self._free.remove(block)
        self._live.append(live)
        return live

    def restart(self, live: Live, tokens: Sequence[int]) -> None:
        """Let the worker see a live id start again, on other tokens and other blocks."""
        self._give_back(live)
        live.tokens, live.num_prompt_tokens = list(tokens), len(tokens)
        live.blocks, live.computed, live.shared, live.is_new = [], 0, 0, True

    def end(self, *lives: Live, now: bool = False) -> None:
        """Sequences that are retired by the next step, or by one of their own."""
        for live in lives:
            self._live.remove(live)
            self._give_back(live)
            self._seqs.append(live.seq)
            self._retired.append(live.seq)
        if now:
            self.step()

    def step(self, *parts: Live | tuple[Live, int]) -> StepResult:
        """One batch: of each part so many of its next tokens, or all that are left."""
        chunks, started = [], []
        chosen = [part if isinstance(part, tuple) else (part, len(part.tokens)) for part in parts]
        for live, most in chosen:
            if live.is_new:
                started.append(self._start_of(live))
                live.is_new = False
            chunks.append(self._chunk(live, most))
        retired, self._retired = self._retired, []
        result = self.worker.execute(Batch(tuple(chunks), tuple(started), tuple(retired)))
        self._check_answers(chunks, result)
        for (live, _), chunk, token in zip(chosen, chunks, result.token_ids, strict=True):
            live.computed += len(chunk.tokens)
            live.prompt_logprobs += result.prompt_logprobs.get(live.seq, ())
            if token is not None:
                live.tokens.append(token)
            live.embedding = result.embeddings.get(live.seq, live.embedding)
            if live.seq in result.logprobs:
                live.logprobs.append(result.logprobs[live.seq])
        self._check_lost(result)
        return result

    def generate(self, lives: Iterable[Live], count: int, chunk: tuple[int, int] = (1000, 1000)) -> None:
        """Steps until each has `count` tokens of output; prompts come in chunks of random length."""
        waiting = list(lives)
        while waiting := [live for live in waiting if len(live.output) < count]:
            budget = self.worker.spec.max_num_batched_tokens - len(waiting)
            parts = []
            for live in waiting:
                left = len(live.tokens) - live.computed
                take = min(left, self.random.randint(*chunk), budget + 1)
                budget -= take - 1
                parts.append((live, take))
            self.random.shuffle(parts)
            self.step(*parts)

    def alone(self, tokens: Sequence[int], count: int, params: SamplingParams = GREEDY) -> list[int]:
        """Output of a sequence with nobody beside it, on blocks of its own, its prompt in one go."""
        live = self.begin(tokens, params=params)
        self.generate([live], count)
        self.end(live, now=True)
        return live.output

    def embed(self, lives: Iterable[Live], chunk: tuple[int, int] = (1000, 1000)) -> None:
        """Steps until each has its embedding; prompts come in chunks of random length, in any order."""
        waiting = list(lives)
        while waiting := [live for live in waiting if live.embedding is None]:
            self.random.shuffle(waiting)
            budget = self.worker.spec.max_num_batched_tokens - len(waiting)
            parts = []
            for live in waiting:
                take = min(len(live.tokens) - live.computed, self.random.randint(*chunk), budget + 1)
                budget -= take - 1
                parts.append((live, take))
            self.step(*parts)

    @property
    def lives(self) -> list[Live]:
        """The sequences that have not ended."""
        return list(self._live)

    @property
    def block_size(self) -> int:
        """Tokens in a block of the worker."""
        return self.worker.spec.block_size

    def _start_of(self, live: Live) -> SequenceStart:
        return SequenceStart(
            live.seq,
            tuple(live.tokens),
            live.num_prompt_tokens,
            live.params,
            seed=live.params.seed or 0,
            pooling=live.pooling,
        )

    def _chunk(self, live: Live, most: int) -> Chunk:
        tokens = tuple(live.tokens[live.computed : live.computed + most])
        end = live.computed + len(tokens)
        while len(live.blocks) * self.block_size < end:
            block = self._free.pop(0)
            self.lost.discard(block)
            live.blocks.append(block)
        wants = Wants.NOTHING
        if end == len(live.tokens):
            wants = Wants.TOKEN if live.pooling is None else Wants.EMBEDDING
        return Chunk(live.seq, tokens, live.computed, tuple(live.blocks), wants)

    def _give_back(self, live: Live) -> None:
        held = {block for other in self._live if other is not live for block in other.blocks}
        self._free += [block for block in live.blocks if block not in held]

    def _check_answers(self, chunks: list[Chunk], result: StepResult) -> None:
        assert result.errors == {}
        assert result.unplaced == frozenset()
        assert [token is not None for token in result.token_ids] == [
            chunk.wants is Wants.TOKEN for chunk in chunks
        ]
        assert set(result.embeddings) == {chunk.seq for chunk in chunks if chunk.wants is Wants.EMBEDDING}

    def _check_lost(self, result: StepResult) -> None:
        held = {block for live in self._live for block in live.blocks[: -(-live.computed // self.block_size)]}
        assert held.isdisjoint(result.lost_blocks), "a block that somebody reads is lost"
        self.lost |= set(result.lost_blocks)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
