"""Drives a worker directly with Batches, as unevenly as a scheduler ever would."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from millstream.backends.answers import Sampler
from millstream.backends.native import Missing, levels
from millstream.backends.torch.decoder.config import decoder_config, read_config
from millstream.backends.torch.decoder.decoder import NativeDecoder
from millstream.backends.torch.decoder.weights import DecoderWeights
from millstream.backends.torch.kernels.interface import Kernels, KVCacheDtype
from millstream.backends.torch.kernels.torch_kernels import TorchKernels
from millstream.backends.torch.worker import TorchWorker
from millstream.backends.worker import Worker, WorkerSpec
from millstream.scheduler.batch import Batch, Chunk, SequenceStart, StepResult, Wants
from millstream.scheduler.sampling_params import SamplingParams

FOUND_LEVELS = levels()
LEVELS = () if isinstance(FOUND_LEVELS, Missing) else FOUND_LEVELS
"""Levels of the native kernels on this machine."""
GREEDY = SamplingParams(temperature=0)


def native_worker(
    folder: Path,
    *,
    max_length: int = 256,
    num_blocks: int = 64,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels | None = None,
    kind: KVCacheDtype = KVCacheDtype.AUTO,
    quantization: str = "none",
) -> TorchWorker:
    """A worker with the native decoder on the CPU, by default on the kernels made of torch operators."""
    config = decoder_config(read_config(folder), max_length)
    device = torch.device("cpu")
    weights = DecoderWeights(
        folder, config, dtype, device, lambda share: None, keep_float32=quantization != "none"
    )
    kernels = TorchKernels() if kernels is None else kernels
    kv = kernels.allocate_kv(config.kv_shapes, num_blocks, block_size, dtype, device, kind)
    spec = WorkerSpec(
        vocab_size=config.vocab_size,
        max_length=max_length,
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        dtype=str(dtype).removeprefix("torch."),
    )
    return TorchWorker(
        spec, NativeDecoder(weights, kernels, kv, quantization), Sampler(config.vocab_size, 8, "cpu")
    )


class Driver:
    """Runs requests with blocks in random order, chunks of random length and random mixtures of chunks."""

    def __init__(self, worker: Worker, seed: int = 0, max_chunk: int = 9, min_chunk: int = 1) -> None:
        self.worker = worker
        self.results: list[StepResult] = []
        self._random = random.Random(seed)
        self._chunks = (min_chunk, max_chunk)
        self._free = list(range(worker.spec.num_blocks))
        self._random.shuffle(self._free)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        params: SamplingParams = GREEDY,
        shared_blocks: int = 0,
    ) -> list[list[int]]:
        """`count` new tokens for each prompt; all sequences share their first `shared_blocks` blocks.

        Only the first sequence computes what is shared; the others read it in the same step.
        """
        size = self.worker.spec.block_size
        ids = [list(prompt) for prompt in prompts]
        common = [self._free.pop() for _ in range(shared_blocks)]
        tables = [
            common + [self._free.pop() for _ in range(-(-(len(p) + count) // size) - shared_blocks)]
            for p in prompts
        ]
        computed = [0 if i == 0 else shared_blocks * size for i in range(len(prompts))]
        started: tuple[SequenceStart, ...] = tuple(
            SequenceStart(i, tuple(p), len(p), params, seed=i) for i, p in enumerate(prompts)
        )
        first = shared_blocks * size
        while any(len(ids[i]) < len(p) + count for i, p in enumerate(prompts)):
            chunks = []
            for i, prompt in enumerate(prompts):
                left = len(ids[i]) - computed[i]
                if len(ids[i]) == len(prompt) + count or (not started and self._random.random() < 0.25):
                    continue
                take = min(left, max(self._random.randint(*self._chunks), first if started else 0))
                tokens = tuple(ids[i][computed[i] : computed[i] + take])
                wants = Wants.TOKEN if take == left else Wants.NOTHING
                blocks = tables[i][: -(-(computed[i] + take) // size)]
                chunks.append(Chunk(i, tokens, computed[i], tuple(blocks), wants))
            result = self.worker.execute(Batch(tuple(chunks), started))
            self.results.append(result)
            started = ()
            for chunk, token in zip(chunks, result.token_ids, strict=True):
                computed[chunk.seq] += len(chunk.tokens)
                if token is not None:
                    ids[chunk.seq].append(token)
        self.worker.execute(Batch((), (), tuple(range(len(prompts)))))
        for table in tables:
            self._free += table[shared_blocks:]
        self._free += common
        self._random.shuffle(self._free)
        return [ids[i][len(p) :] for i, p in enumerate(prompts)]
