"""Warm-up: a chunk and a full batch, so that no later request is the first of its kind; and learning."""

from collections.abc import Iterator, Sequence
from itertools import repeat
from time import perf_counter

from ..backends.worker import Progress, Worker, WorkerSpec
from ..scheduler import Batch, Chunk, SamplingParams, SequenceStart, Wants

LEARNING_SECONDS = 0.2
"""For so long steps are repeated from which the worker may learn; what is left it learns from requests."""


def warm_up(worker: Worker, progress: Progress) -> None:
    """Run the worker on made-up sequences; what they leave in the cache is never matched by anyone.

    Raises:
        WorkerError: the worker cannot run a batch that its spec allows.
    """
    spec = worker.spec
    batches = [_chunk(spec), _decode(spec, min(spec.max_num_seqs, spec.num_blocks))]
    for done, batch in enumerate(batches):
        progress("warm-up", done / (len(batches) + 1))
        worker.execute(batch)
    ends = perf_counter() + LEARNING_SECONDS
    for batch in _repeated(spec):
        if perf_counter() > ends:
            break
        worker.execute(batch)
    worker.execute(Batch((), retired=tuple(range(spec.max_num_seqs))))
    progress("warm-up", 1.0)


def _repeated(spec: WorkerSpec) -> Iterator[Batch]:
    """Steps of all sizes, the small ones first, and the chunk: as often as something is to be learnt."""
    if spec.learning_steps == 1:
        return
    most = min(spec.max_num_seqs, spec.num_blocks)
    steps = [_decode(spec, 1 << i) for i in range(most.bit_length())]
    for step in [*steps, _chunk(spec)]:
        yield from repeat(step, spec.learning_steps)


def _chunk(spec: WorkerSpec) -> Batch:
    """A new sequence's prompt."""
    room = spec.num_blocks * spec.block_size
    longest = max(1, min(spec.warmup_tokens, spec.max_num_batched_tokens, spec.max_length - 1, room))
    tokens = tuple(index % spec.vocab_size for index in range(longest))
    return _begin(spec, [(tokens, tuple(range(-(-longest // spec.block_size))))])


def _decode(spec: WorkerSpec, count: int) -> Batch:
    """So many new sequences of one token."""
    return _begin(spec, [((0,), (block,)) for block in range(count)])


def _begin(spec: WorkerSpec, prompts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Batch:
    """New sequences, in place of all others, with these tokens and blocks."""
    params = SamplingParams(temperature=0)
    pooling = None if spec.generates or spec.embedding is None else spec.embedding.pooling
    wants = Wants.TOKEN if pooling is None else Wants.EMBEDDING
    chunks, starts = [], []
    for seq, (tokens, blocks) in enumerate(prompts):
        chunks.append(Chunk(seq, tokens, 0, blocks, wants))
        starts.append(SequenceStart(seq, tokens, len(tokens), params, seed=0, pooling=pooling))
    return Batch(tuple(chunks), tuple(starts), retired=tuple(range(spec.max_num_seqs)))
