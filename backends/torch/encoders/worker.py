"""EncoderWorker: executes batches of whole prompts with an Encoder."""

import torch

from ....errors import NotSupported, WorkerError
from ....scheduler.batch import Batch, Chunk, StepResult
from ...answers.pooling import Pooler, Projection
from ...worker import Adapter, WorkerSpec
from ..pooled_rows import to_rows
from .encoder import Encoder


class EncoderWorker:
    """A Worker that gives embeddings alone. Blocks mean nothing to it: it keeps no keys and values."""

    def __init__(self, spec: WorkerSpec, encoder: Encoder, projection: Projection | None = None) -> None:
        """`projection` is what becomes of pooled hidden states before they are an embedding."""
        self._spec = spec
        self._encoder: Encoder | None = encoder
        self._pooler = Pooler(projection)

    @property
    def spec(self) -> WorkerSpec:
        """See `Worker`."""
        return self._spec

    def execute(self, batch: Batch) -> StepResult:
        """See `Worker`."""
        if self._encoder is None:
            raise WorkerError("the worker is closed")
        try:
            return self._execute(batch, self._encoder)
        except WorkerError:
            raise
        except Exception as error:
            raise WorkerError(f"{type(error).__name__} while executing a batch: {error}") from error

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """Refused: see `WorkerSpec.takes_adapters`."""
        raise NotSupported(f"adapter {adapter.name!r}: models on torch that give embeddings take no adapters")

    def unload_adapter(self, name: str) -> None:
        """There is none to forget."""

    def close(self) -> None:
        """See `Worker`."""
        self._encoder = None
        if torch.device(self._spec.device).type == "cuda":
            torch.cuda.empty_cache()

    def _execute(self, batch: Batch, encoder: Encoder) -> StepResult:
        for seq in batch.retired:
            self._pooler.retire(seq)
        lengths = {}
        for start in batch.started:
            self._pooler.start(start)
            lengths[start.seq] = len(start.token_ids)
        for chunk in batch.chunks:
            _check_whole(chunk, lengths.get(chunk.seq))
        wanted = [self._pooler.rows_of(chunk) for chunk in batch.chunks]
        for i, states in encoder.states([chunk.tokens for chunk in batch.chunks]):
            self._pooler.add(batch.chunks[i].seq, to_rows(states[wanted[i].start : wanted[i].stop]))
        pooled = self._pooler.answer(batch.chunks)
        return StepResult([None] * len(batch.chunks), embeddings=pooled.embeddings, errors=pooled.errors)


def _check_whole(chunk: Chunk, length: int | None) -> None:
    """Raise WorkerError unless the chunk holds all tokens of a sequence that begins with this step."""
    if chunk.start or len(chunk.tokens) != length:
        raise WorkerError(f"sequence {chunk.seq} comes in chunks; its tokens see those that come after them")
