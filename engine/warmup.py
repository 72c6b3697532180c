"""Warm-up: a chunk and a full batch, so that no later request is the first of its kind."""

from collections.abc import Iterator

from ..backends.worker import Progress, Worker, WorkerSpec
from ..scheduler import Batch, Chunk, SamplingParams, SequenceStart, Wants


def warm_up(worker: Worker, progress: Progress) -> None:
    """Run the worker on made-up sequences; what they leave in the cache is never matched by anyone.

    Raises:
        WorkerError: the worker cannot run a batch that its spec allows.
    """
    batches = list(_batches(worker.spec))
    for done, batch in enumerate(batches):
        progress("warm-up", done / len(batches))
        worker.execute(batch)
    progress("warm-up", 1.0)


def _batches(spec: WorkerSpec) -> Iterator[Batch]:
    params = SamplingParams(temperature=0)
    room = spec.num_blocks * spec.block_size
    longest = max(1, min(spec.warmup_tokens, spec.max_num_batched_tokens, spec.max_length - 1, room))
    blocks = tuple(range(-(-longest // spec.block_size)))
    tokens = tuple(index % spec.vocab_size for index in range(longest))
    pooling = None if spec.generates or spec.embedding is None else spec.embedding.pooling
    wants = Wants.TOKEN if pooling is None else Wants.EMBEDDING
    start = SequenceStart(0, tokens, longest, params, seed=0, pooling=pooling)
    yield Batch((Chunk(0, tokens, 0, blocks, wants),), (start,))

    count = min(spec.max_num_seqs, spec.num_blocks)
    chunks = tuple(Chunk(seq, (0,), 0, (seq,), wants) for seq in range(count))
    starts = tuple(SequenceStart(seq, (0,), 1, params, seed=0, pooling=pooling) for seq in range(count))
    yield Batch(chunks, starts, retired=(0,))
    yield Batch((), retired=tuple(range(count)))
