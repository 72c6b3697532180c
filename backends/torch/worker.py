"""TorchWorker: executes batches with a PagedModel and the sampler."""

from time import perf_counter

import torch
from msgspec.structs import replace
from torch import Tensor

from ...errors import NotSupported, WorkerError
from ...scheduler.batch import Batch, StepResult, TokenLogprobs, Wants
from ..answers import Sampler
from ..answers.pooling import Pooler, Projection
from ..answers.prompt_scores import MAX_ROWS, PromptPart, PromptScores
from ..machine.threads import ThreadChooser
from ..native import set_threads
from ..worker import Adapter, WorkerSpec
from .batching import StepBuilder
from .model import PagedModel
from .pooled_rows import PooledRows


class TorchWorker:
    """A Worker over any PagedModel."""

    def __init__(
        self,
        spec: WorkerSpec,
        model: PagedModel,
        sampler: Sampler,
        projection: Projection | None = None,
        threads: ThreadChooser | None = None,
    ) -> None:
        """`projection` is what becomes of pooled hidden states before they are an embedding.

        Without `threads` all native kernels take one.
        """
        self._spec = spec
        self._model: PagedModel | None = model
        self._sampler = sampler
        self._builder = StepBuilder(
            spec.max_num_seqs, spec.max_length, spec.block_size, torch.device(spec.device)
        )
        self._prompts = PromptScores(sampler.token_logprobs)
        self._pooler = Pooler(projection)
        self._threads = threads or ThreadChooser(1, tunes=False)

    @property
    def spec(self) -> WorkerSpec:
        """See `Worker`."""
        return self._spec

    def execute(self, batch: Batch) -> StepResult:
        """See `Worker`."""
        if self._model is None:
            raise WorkerError("the worker is closed")
        try:
            if not batch.chunks:
                return self._execute(batch, self._model)
            threads = self._threads.choose(batch.num_tokens)
            set_threads(threads)
            began = perf_counter()
            result = self._execute(batch, self._model)
            self._threads.observe(batch.num_tokens, perf_counter() - began)
            return replace(result, threads=threads)
        except Exception as error:
            raise WorkerError(f"{type(error).__name__} while executing a batch: {error}") from error

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """Refused: see `WorkerSpec.takes_adapters`."""
        raise NotSupported(f"adapter {adapter.name!r}: models on torch take no adapters")

    def unload_adapter(self, name: str) -> None:
        """There is none to forget."""

    def close(self) -> None:
        """See `Worker`."""
        self._model = None
        if torch.device(self._spec.device).type == "cuda":
            torch.cuda.empty_cache()

    def _execute(self, batch: Batch, model: PagedModel) -> StepResult:
        for seq in batch.retired:
            self._sampler.retire(seq)
            self._builder.forget(seq)
            self._prompts.retire(seq)
            self._pooler.retire(seq)
        for start in batch.started:
            self._sampler.start(start)
            self._builder.forget(start.seq)
            self._prompts.start(start)
            self._pooler.start(start)
        if not batch.chunks:
            return StepResult(token_ids=[])
        parts = self._prompts.parts(batch.chunks)
        answering, answer_rows = _answering(batch)
        prompt_rows = _prompt_rows(parts)
        rows = sorted({*answer_rows, *prompt_rows}) if prompt_rows else answer_rows
        pooled_rows = PooledRows.of(batch.chunks, self._pooler)
        outputs = model.forward(self._builder.build(batch.chunks, rows, pooled_rows.rows))
        pooled_rows.hand_over(outputs.states, self._pooler)
        pooled = self._pooler.answer(batch.chunks)
        logits = outputs.logits
        # Scoring prompts may run the model again, and then its logits are others.
        answers = logits[[rows.index(row) for row in answer_rows]] if parts else logits
        prompts = self._score_prompts(model, parts, prompt_rows, rows, logits) if parts else {}
        sample = self._sampler.sample(answers, [batch.chunks[i].seq for i in answering])
        token_ids: list[int | None] = [None] * len(batch.chunks)
        for i, token in zip(answering, sample.token_ids, strict=True):
            token_ids[i] = token
        errors = sample.errors | pooled.errors if pooled.errors else sample.errors
        return StepResult(token_ids, sample.logprobs, prompts, pooled.embeddings, errors)

    def _score_prompts(
        self,
        model: PagedModel,
        parts: list[PromptPart],
        prompt_rows: list[int],
        rows: list[int],
        logits: Tensor,
    ) -> dict[int, tuple[TokenLogprobs | None, ...]]:
        """Score the rows of this pass, then those that did not fit, a chunk at a time.

        The chunks run after the whole step has written its keys and values, so what they read is there.
        """
        place = {row: k for k, row in enumerate(rows)}
        wanted = set(prompt_rows)
        for part in parts:
            own = [row for row in _rows_of(part) if row in wanted]
            if own:
                self._prompts.add(part, logits[[place[row] for row in own]])
        for part in parts:
            for chunk, count in list(part.remaining()):
                self._prompts.add(part, model.forward(self._builder.build([chunk], range(count))).logits)
        return {part.chunk.seq: self._prompts.finish(part) for part in parts}


def _answering(batch: Batch) -> tuple[list[int], list[int]]:
    """Slices that want a token, and the rows of their last tokens."""
    chunks, rows = [], []
    end = 0
    for i, chunk in enumerate(batch.chunks):
        end += len(chunk.tokens)
        if chunk.wants is Wants.TOKEN:
            chunks.append(i)
            rows.append(end - 1)
    return chunks, rows


def _rows_of(part: PromptPart) -> range:
    return range(part.first_row, part.first_row + len(part.predicted))


def _prompt_rows(parts: list[PromptPart]) -> list[int]:
    """As many of the parts' rows, from the first on, as one pass may give logits of."""
    return [row for part in parts for row in _rows_of(part)][:MAX_ROWS]
