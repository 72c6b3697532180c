"""LlamaCppWorker: executes batches with llama.cpp and the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch

from ...errors import WorkerError
from ...scheduler.batch import Batch, Slice, StepResult, TokenLogprobs, Wants
from ..sampling import Sampler
from ..torch.prompt_scores import PromptScores
from ..worker import ModelInfo, Progress, WorkerConfig, WorkerSpec
from .context import Context, LlamaContext
from .passes import Share, Work, cut, holes
from .sequence_map import MapStats, Opening, SequenceMap


@dataclass(slots=True)
class _Answers:
    """What the calls of one step have given so far."""

    token_ids: list[int | None]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    unplaced: set[int] = field(default_factory=set)


class LlamaCppWorker:
    """A Worker over llama.cpp. Blocks are names to it: see `SequenceMap`."""

    def __init__(self, spec: WorkerSpec, context: Context, sampler: Sampler) -> None:
        self._spec = spec
        self._context: Context | None = context
        self._sampler = sampler
        self._prompts = PromptScores(sampler.token_logprobs)
        self._tokens: dict[int, list[int]] = {}
        """All tokens of each live sequence, to compute again what no lane holds any more."""
        self._map = SequenceMap(
            context,
            lanes=context.layout.lanes,
            block_size=spec.block_size,
            streams=context.layout.streams,
            can_cut=context.can_cut,
        )

    @property
    def spec(self) -> WorkerSpec:
        """See `Worker`."""
        return self._spec

    @property
    def streams(self) -> bool:
        """Whether each sequence has memory of its own."""
        return self._map.streams

    @property
    def map_stats(self) -> MapStats:
        """How often prefixes were continued, copied and computed again."""
        return self._map.stats

    def execute(self, batch: Batch) -> StepResult:
        """See `Worker`."""
        if self._context is None:
            raise WorkerError("the worker is closed")
        try:
            return self._execute(batch, self._context)
        except Exception as error:
            # What was claimed may not have been computed, and a call that failed may have left some of it.
            self._map.clear()
            self._context.clear()
            if isinstance(error, WorkerError):
                raise
            raise WorkerError(f"{type(error).__name__} while executing a batch: {error}") from error

    def close(self) -> None:
        """See `Worker`."""
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _execute(self, batch: Batch, context: Context) -> StepResult:
        for seq in batch.retired:
            self._sampler.retire(seq)
            self._prompts.retire(seq)
            self._map.retire(seq)
            self._tokens.pop(seq, None)
        for start in batch.started:
            self._sampler.start(start)
            self._prompts.start(start)
            self._map.retire(start.seq)
            self._tokens[start.seq] = list(start.token_ids)
        answers = _Answers([None] * len(batch.slices))
        works = self._place(batch.slices, context)
        for shares in cut(works, context.max_tokens, context.max_rows):
            self._compute(shares, context, answers)
        parts = [work.part for work in works if work.part is not None and work.seq not in answers.unplaced]
        return StepResult(
            token_ids=answers.token_ids,
            logprobs=answers.logprobs,
            prompt_logprobs={part.piece.seq: self._prompts.finish(part) for part in parts},
            errors=answers.errors,
            unplaced=frozenset(answers.unplaced),
            lost_blocks=self._map.take_lost(),
        )

    def _place(self, slices: Sequence[Slice], context: Context) -> list[Work]:
        """Give each slice's sequence a lane, and find out what is to be computed there."""
        parts = {part.piece.seq: part for part in self._prompts.parts(slices)}
        new = [piece for piece in slices if not self._map.is_open(piece.seq)]
        self._map.open([Opening(piece.seq, piece.blocks, piece.start) for piece in new])
        works = []
        for index, piece in enumerate(slices):
            known = self._tokens[piece.seq]
            end = piece.start + len(piece.tokens)
            if piece.start > len(known):
                raise WorkerError(f"sequence {piece.seq} reads position {len(known)}, which never came")
            if end > context.lane_size:
                raise WorkerError(f"sequence {piece.seq} has {end} tokens; at most {context.lane_size} fit")
            known[piece.start : end] = piece.tokens
            held = self._map.align(piece.seq, piece.start)
            self._map.claim(piece.seq, piece.blocks, end)
            works.append(
                Work(
                    index=index,
                    seq=piece.seq,
                    lane=self._map.lane(piece.seq),
                    tokens=piece.tokens if held == piece.start else known[held:end],
                    first=held,
                    answers=piece.wants is Wants.TOKEN,
                    part=parts.get(piece.seq),
                    missing=piece.start - held,
                )
            )
        return works

    def _compute(self, shares: list[Share], context: Context, answers: _Answers) -> None:
        """One call of llama_decode; where there is no room for it, as much of it as there is room for."""
        shares = [share for share in shares if share.work.seq not in answers.unplaced]
        if not shares:
            return
        code = self._decode(shares, context)
        if code == 1:
            self._map.forget_idle()
            code = self._decode(shares, context)
        if code == 0:
            self._read(shares, context, answers)
        elif code != 1:
            raise WorkerError(
                f"llama_decode returned {code} for {sum(s.end - s.begin for s in shares)} tokens"
            )
        elif len(shares) > 1:
            half = len(shares) // 2
            self._compute(shares[:half], context, answers)
            self._compute(shares[half:], context, answers)
        else:
            work = shares[0].work
            self._map.align(work.seq, work.first + shares[0].begin)
            answers.unplaced.add(work.seq)

    def _decode(self, shares: list[Share], context: Context) -> int:
        """Compute the shares; llama_decode's return code."""
        tokens: list[int] = []
        positions: list[int] = []
        lanes: list[int] = []
        wanted: list[int] = []
        fillers = self._fillers(shares, context)
        for share in shares:
            work, begin, end = share.work, share.begin, share.end
            for lane, length in fillers.get(work.lane, ()):
                tokens.append(0)
                positions.append(length)
                lanes.append(lane)
            row = len(tokens) - begin
            wanted += [row + scored for scored in share.scored]
            tokens += work.tokens[begin:end]
            positions += range(work.first + begin, work.first + end)
            lanes += [work.lane] * (end - begin)
            if share.answers:
                wanted.append(len(tokens) - 1)
        code = context.decode(tokens, positions, lanes, wanted)
        for lane, length in chain.from_iterable(fillers.values()):
            context.remove(lane, length)
        return code

    def _fillers(self, shares: Sequence[Share], context: Context) -> dict[int, list[tuple[int, int]]]:
        """Idle lanes to give a throw-away token, and their lengths, by the lane that comes after them."""
        fillers: dict[int, list[tuple[int, int]]] = {}
        if not context.layout.streams or not context.can_cut:
            return fillers
        room = context.max_tokens - sum(share.end - share.begin for share in shares)
        for hole in holes(shares):
            lengths = [(lane, self._map.idle_length(lane)) for lane in hole]
            usable = [(lane, n) for lane, n in lengths if n is not None and n < context.lane_size]
            if len(usable) == len(hole) <= room:
                fillers[hole.stop] = usable
                room -= len(hole)
        return fillers

    def _read(self, shares: Sequence[Share], context: Context, answers: _Answers) -> None:
        """Score prompts and choose tokens by the logits of the last call."""
        rows = sum(len(share.scored) + share.answers for share in shares)
        if not rows:
            return
        logits = torch.from_numpy(context.logits(rows))
        answering: list[Work] = []
        answer_rows: list[int] = []
        row = 0
        for share in shares:
            count = len(share.scored)
            if count and share.work.part is not None:
                self._prompts.add(share.work.part, logits[row : row + count])
            row += count
            if share.answers:
                answering.append(share.work)
                answer_rows.append(row)
                row += 1
        if len(answer_rows) < rows:
            logits = logits[answer_rows]
        sample = self._sampler.sample(logits, [work.seq for work in answering])
        for work, token in zip(answering, sample.token_ids, strict=True):
            answers.token_ids[work.index] = token
        answers.logprobs.update(sample.logprobs)
        answers.errors.update(sample.errors)


def load_worker(info: ModelInfo, config: WorkerConfig, progress: Progress) -> LlamaCppWorker:
    """Read the weights and make the worker. The files' headers have been checked.

    Raises:
        ModelFormatError: llama.cpp does not load the file; says why.
        InsufficientMemory: there is no room for the cache.
        NotSupported: llama.cpp is not installed.
    """
    context = LlamaContext(info, config, progress)
    spec = WorkerSpec(
        vocab_size=info.vocab_size,
        max_length=config.max_length,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_num_seqs=min(config.max_num_seqs, context.layout.lanes),
        max_num_batched_tokens=config.max_num_batched_tokens,
        # Buffers are made for the largest step when the context is.
        warmup_tokens=64 if config.device == "cpu" else config.max_num_batched_tokens,
        shares_prefixes=context.can_cut,
        shares_within_step=False,
        device=config.device,
        dtype=config.dtype,
    )
    return LlamaCppWorker(spec, context, Sampler(info.vocab_size, spec.max_num_seqs, "cpu"))
