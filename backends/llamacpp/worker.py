"""LlamaCppWorker: executes batches with llama.cpp, and hands the rows it gives to a reader."""

from collections.abc import Iterator, Sequence
from itertools import chain
from time import perf_counter

from msgspec.structs import replace

from ...errors import NotSupported, WorkerError
from ...scheduler.batch import Batch, Chunk, Pooling, StepResult
from ..answers import Sampler
from ..gguf.model_file import GGUFModel
from ..machine.threads import ThreadChooser
from ..native import set_threads
from ..worker import Adapter, EmbeddingSpec, ModelInfo, Progress, WorkerConfig, WorkerSpec
from .adapter_file import check_adapter
from .context import Context, LlamaContext
from .fixed_shapes import FixedShape, require_fixed_shapes
from .passes import Share, Work, cut, gaps, split_state_row
from .readers import Answers, Reader
from .sequence_map import MapStats, Opening, SequenceMap


class LlamaCppWorker:
    """A Worker over llama.cpp. Blocks are names to it: see `SequenceMap`."""

    def __init__(
        self,
        spec: WorkerSpec,
        file: GGUFModel | None,
        context: Context,
        reader: Reader,
        batch_invariant: bool = False,
        threads: ThreadChooser | None = None,
    ) -> None:
        """`file` is the header of the model, to check adapters against; None where none is taken.

        With `batch_invariant` the context has a stream for each sequence. Without `threads` each step takes
        one.
        """
        self._spec = spec
        self._file = file
        self._context: Context | None = context
        self._reader = reader
        self._threads = threads or ThreadChooser(1, tunes=False)
        self._tokens: dict[int, list[int]] = {}
        """All tokens of each live sequence, to compute again what no lane holds any more."""
        self._adapter_of: dict[int, str | None] = {}
        self._batch_invariant = batch_invariant
        self._shape_of: dict[int, FixedShape] = {}
        """Of each live sequence, where results must not depend on the batch."""
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
        context = self._open_context()
        try:
            if not batch.chunks:
                return self._execute(batch, context)
            threads = self._threads.choose(batch.num_tokens)
            context.use_threads(threads)
            set_threads(threads)  # of the kernels that choose tokens
            began = perf_counter()
            result = self._execute(batch, context)
            self._threads.observe(batch.num_tokens, perf_counter() - began)
            return replace(result, threads=threads)
        except Exception as error:
            # What was claimed may not have been computed, and a call that failed may have left some of it.
            self._map.clear()
            context.clear()
            if isinstance(error, WorkerError):
                raise
            raise WorkerError(f"{type(error).__name__} while executing a batch: {error}") from error

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """See `Worker`; it is a .gguf file."""
        context = self._open_context()
        if self._file is None or not self._spec.takes_adapters:
            raise NotSupported(
                f"adapter {adapter.name!r}: models that give embeddings take none on llama.cpp"
            )
        check_adapter(adapter.path, self._file, max_rank)
        context.load_adapter(adapter)

    def unload_adapter(self, name: str) -> None:
        """See `Worker`."""
        self._open_context().unload_adapter(name)

    def close(self) -> None:
        """See `Worker`."""
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _open_context(self) -> Context:
        if self._context is None:
            raise WorkerError("the worker is closed")
        return self._context

    def _execute(self, batch: Batch, context: Context) -> StepResult:
        for seq in batch.retired:
            self._reader.retire(seq)
            self._map.retire(seq)
            self._tokens.pop(seq, None)
            self._adapter_of.pop(seq, None)
            self._shape_of.pop(seq, None)
        for start in batch.started:
            self._reader.start(start)
            self._map.retire(start.seq)
            self._tokens[start.seq] = list(start.token_ids)
            self._adapter_of[start.seq] = start.adapter
            if self._batch_invariant:
                scored = start.params.prompt_logprobs is not None
                self._shape_of[start.seq] = FixedShape(start.num_prompt_tokens, scored)
        answers = Answers()
        if batch.chunks:
            self._compute_step(batch.chunks, context, answers)
        return StepResult(
            token_ids=[answers.tokens.get(chunk.seq) for chunk in batch.chunks],
            logprobs=answers.logprobs,
            prompt_logprobs=answers.prompt_logprobs,
            embeddings=answers.embeddings,
            errors=answers.errors,
            unplaced=frozenset(answers.unplaced),
            lost_blocks=self._map.take_lost(),
        )

    def _compute_step(self, chunks: Sequence[Chunk], context: Context, answers: Answers) -> None:
        adapters = {self._adapter_of[chunk.seq] for chunk in chunks}
        if len(adapters) > 1:
            raise WorkerError(f"one step runs under one adapter, not under {', '.join(map(repr, adapters))}")
        context.use_adapter(*adapters)
        works = self._place(chunks, context)
        # What comes before a row of hidden states in its sequence has been computed when that row is.
        for states in (False, True):
            chosen = [work for work in works if work.states is states]
            for shares in self._calls(chosen, states, context):
                self._compute(shares, context, answers)
        self._reader.finish([chunk for chunk in chunks if chunk.seq not in answers.unplaced], answers)

    def _calls(self, works: list[Work], states: bool, context: Context) -> Iterator[list[Share]]:
        """What one call of llama_decode after the other computes."""
        if not self._batch_invariant:
            yield from cut(works, _most_tokens(context, states), context.max_rows)
            return
        for work in works:
            for share in self._shape_of[work.seq].shares(work):
                yield [share]
            if work.surplus:
                context.remove(work.lane, work.end)

    def _place(self, chunks: Sequence[Chunk], context: Context) -> list[Work]:
        """Give each chunk's sequence a lane, and find out what is to be computed there."""
        new = [chunk for chunk in chunks if not self._map.is_open(chunk.seq)]
        prompts = {seq: shape.prompt for seq, shape in self._shape_of.items()}
        self._map.open(
            [Opening(chunk.seq, chunk.blocks, chunk.start, prompts.get(chunk.seq, 0)) for chunk in new]
        )
        works = []
        for chunk, wanted in zip(chunks, self._reader.begin_step(chunks), strict=True):
            known = self._tokens[chunk.seq]
            end = chunk.start + len(chunk.tokens)
            if chunk.start > len(known):
                raise WorkerError(f"sequence {chunk.seq} reads position {len(known)}, which never came")
            most = context.layout.lane_size
            if end > most:
                raise WorkerError(f"sequence {chunk.seq} has {end} tokens; at most {most} fit")
            known[chunk.start : end] = chunk.tokens
            held = self._map.align(chunk.seq, chunk.start)
            last, scored = end, False
            if (shape := self._shape_of.get(chunk.seq)) is not None:
                held = self._map.align(chunk.seq, shape.begin(held))
                last, scored = shape.end(end - 1), shape.scored and chunk.start < shape.prompt
            self._map.claim(chunk.seq, chunk.blocks, end)
            missing = chunk.start - held
            work = Work(
                seq=chunk.seq,
                lane=self._map.lane(chunk.seq),
                tokens=known[held:last] if missing or last > end else chunk.tokens,
                first=held,
                leading=range(missing, missing + wanted.leading),
                answers=wanted.last,
                states=wanted.states or context.always_states,
                surplus=last - end,
                whole=scored,
            )
            works += [work] if context.always_states or shape is not None else split_state_row(work)
        return works

    def _compute(self, shares: list[Share], context: Context, answers: Answers) -> None:
        """One call of llama_decode; where there is no room for it, as much of it as there is room for."""
        shares = [share for share in shares if share.work.seq not in answers.unplaced]
        if not shares:
            return
        code = self._decode(shares, context)
        while code == 1 and context.grow():
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
            row = len(tokens)
            wanted += [row + own for own in (range(end - begin) if work.whole else share.rows)]
            tokens += work.tokens[begin:end]
            positions += range(work.first + begin, work.first + end)
            lanes += [work.lane] * (end - begin)
        code = context.decode(tokens, positions, lanes, wanted, shares[0].work.states)
        for lane, length in chain.from_iterable(fillers.values()):
            context.remove(lane, length)
        return code

    def _fillers(self, shares: Sequence[Share], context: Context) -> dict[int, list[tuple[int, int]]]:
        """Idle lanes to give a throw-away token, and their lengths, by the lane that comes after them."""
        fillers: dict[int, list[tuple[int, int]]] = {}
        if not context.layout.streams or not context.can_cut:
            return fillers
        most = _most_tokens(context, shares[0].work.states)
        room = most - sum(share.end - share.begin for share in shares)
        for gap in gaps(shares):
            lengths = [(lane, self._map.idle_length(lane)) for lane in gap]
            usable = [(lane, n) for lane, n in lengths if n is not None and n < context.lane_size]
            if len(usable) == len(gap) <= room:
                fillers[gap.stop] = usable
                room -= len(gap)
        return fillers

    def _read(self, shares: Sequence[Share], context: Context, answers: Answers) -> None:
        """Hand the rows of the last call to the reader."""
        if not any(len(share.leading) + share.answers for share in shares):
            return
        rows = context.rows()
        if shares[0].work.whole:
            rows = rows[shares[0].rows]
        answering: list[int] = []
        answer_rows: list[int] = []
        row = 0
        for share in shares:
            end = row + len(share.leading)
            if end > row:
                self._reader.add(share.work.seq, rows[row:end])
            row = end
            if share.answers and share.work.states:
                self._reader.add(share.work.seq, rows[row : row + 1])
                row += 1
            elif share.answers:
                answering.append(share.work.seq)
                answer_rows.append(row)
                row += 1
        if answering:
            self._reader.answer(answering, rows if len(answering) == row else rows[answer_rows], answers)


def load_worker(file: GGUFModel, info: ModelInfo, config: WorkerConfig, progress: Progress) -> LlamaCppWorker:
    """Read the weights and make the worker of the model whose headers are `file`.

    Raises:
        ModelFormatError: llama.cpp does not load the file; says why.
        InsufficientMemory: there is no room for the cache.
        NotSupported: llama.cpp is not installed, or does not write texts with this model.
    """
    require_fixed_shapes(config, file)
    context = LlamaContext(file, info, config, progress)
    if config.batch_invariant and not context.can_cut:
        context.close()
        raise NotSupported(f"batch_invariant is True, but sequences of {info.name} cannot lose single tokens")
    pooling = file.pooling
    tunes = config.tunes_threads and config.device == "cpu" and not config.batch_invariant
    threads = ThreadChooser(config.threads, tunes=tunes)
    spec = WorkerSpec(
        vocab_size=info.vocab_size,
        max_length=config.max_length,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_num_seqs=min(config.max_num_seqs, context.layout.lanes),
        max_num_batched_tokens=config.max_num_batched_tokens,
        # Buffers are made for the largest step when the context is.
        warmup_tokens=64 if config.device == "cpu" else config.max_num_batched_tokens,
        learning_steps=threads.learning_steps,
        shares_prefixes=context.can_cut,
        shares_within_step=False,
        generates=pooling is None,
        embedding=EmbeddingSpec(size=context.embedding_size, pooling=pooling or Pooling.LAST),
        chunks_prompts=file.is_causal,
        takes_adapters=pooling is None,
        mixes_adapters=False,
        device=config.device,
        dtype=config.dtype,
    )
    reader = Reader(Sampler(info.vocab_size, spec.max_num_seqs, "cpu"))
    return LlamaCppWorker(spec, file, context, reader, config.batch_invariant, threads)


def _most_tokens(context: Context, states: bool) -> int:
    """Most tokens of one call: each one gives a row where rows are hidden states."""
    return min(context.max_tokens, context.max_rows) if states else context.max_tokens
