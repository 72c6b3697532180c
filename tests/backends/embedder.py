"""Drives a worker with prompts that become embeddings, in any chunks and any company."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from millstream.backends.worker import Worker
from millstream.scheduler.batch import Batch, Chunk, Pooling, SequenceStart, Wants
from millstream.scheduler.sampling_params import SamplingParams


def embed(
    worker: Worker, prompts: Sequence[Sequence[int]], pooling: Pooling = Pooling.MEAN, chunk: int = 10**6
) -> NDArray[np.float64]:
    """[prompts, size] of prompts that run together, at most so many tokens of each a step."""
    size = worker.spec.block_size
    lengths = [-(-len(prompt) // size) for prompt in prompts]
    firsts = [sum(lengths[:i]) for i in range(len(prompts))]
    tables = [tuple(range(first, first + count)) for first, count in zip(firsts, lengths, strict=True)]
    started = tuple(
        SequenceStart(seq, tuple(prompt), len(prompt), SamplingParams(), seed=0, pooling=pooling)
        for seq, prompt in enumerate(prompts)
    )
    found: dict[int, tuple[float, ...]] = {}
    position = 0
    while len(found) < len(prompts):
        chunks = []
        for seq, prompt in enumerate(prompts):
            tokens = tuple(prompt[position : position + chunk])
            wants = Wants.EMBEDDING if position + len(tokens) == len(prompt) else Wants.NOTHING
            if tokens:
                chunks.append(Chunk(seq, tokens, position, tables[seq], wants))
        result = worker.execute(Batch(tuple(chunks), started))
        assert not result.errors
        assert result.token_ids == [None] * len(chunks)
        assert set(result.embeddings) == {each.seq for each in chunks if each.wants is Wants.EMBEDDING}
        found.update(result.embeddings)
        started, position = (), position + chunk
    worker.execute(Batch((), (), tuple(range(len(prompts)))))
    return np.array([found[seq] for seq in range(len(prompts))])


def error(found: object, expected: object) -> float:
    """The largest length of a difference, as a share of what is expected."""
    rows, wanted = np.atleast_2d(np.array(found)), np.atleast_2d(np.array(expected))
    return float((np.linalg.norm(rows - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())
