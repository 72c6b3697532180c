"""Kernel cases: native kernels and whole model steps at given sizes, ready to be run and timed.

What they compute on is random but sane: no value is infinite, and caches are filled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..backends.answers import Sampler
from ..backends.answers.native_token_sampler import NativeTokenSampler
from ..backends.machine.pages import reserve
from ..backends.native import load, set_threads
from ..backends.native.linear import PLAIN, NativeLinear, has_bf16_products, pack
from ..backends.torch.decoder.config import decoder_config, read_config
from ..backends.torch.decoder.decoder import NativeDecoder
from ..backends.torch.decoder.linear import GATED_KINDS
from ..backends.torch.decoder.weights import DecoderWeights
from ..backends.torch.kernels.interface import Activation, AttentionSpec, KVCacheDtype, KVShape
from ..backends.torch.kernels.native_cache import NativePagedKV
from ..backends.torch.kernels.native_kernels import NativeKernels, make_kernels
from ..backends.torch.kernels.step_inputs import StepInputs
from ..errors import NotSupported
from ..scheduler.batch import SequenceStart
from ..scheduler.sampling_params import SamplingParams

CPU = torch.device("cpu")
BLOCK_SIZE = 16
STEP_CONTEXT = 512
"""Tokens that each sequence of a decode step has before it."""
_TWO_NUMBERS = 0x3C003C00
"""Two small bfloat16 numbers in one unit of a cache: memory that was never written would be read too fast."""
BITS = {"bf16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class KernelSizes:
    """The sizes of a model that its kernels meet."""

    vocab: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel on one input."""

    kernel: str
    size: str
    run: Callable[[], object]
    read_bytes: int = 0
    """Memory that every run must read, each byte once; 0: what it reads is small, and mostly in caches."""
    operations: int = 0
    """Multiplications and additions; 0: not what the kernel is about."""


class MemoryReader:
    """Reads a piece of memory larger than the caches, and nothing else; so they hold nothing afterwards."""

    def __init__(self, level: str, size: int) -> None:
        self._memory = reserve(size).fill_(1)
        self._read = load(level).read_memory

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._memory)

    def __call__(self) -> None:
        """Read it from end to end, each thread a part."""
        self._read(self._memory.data_ptr(), len(self._memory))


def use_threads(count: int) -> None:
    """The number of threads of all kernels in this process."""
    torch.set_num_threads(count)
    set_threads(count)


def make_inputs(chunks: Sequence[tuple[int, int]], vocab: int) -> StepInputs:
    """A step of chunks (new tokens, context with them) that wants each one's last logits.

    Blocks lie scattered, as after long use.
    """
    counts = [new for new, _ in chunks]
    lengths = [context for _, context in chunks]
    needed = [-(-length // BLOCK_SIZE) for length in lengths]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(sum(needed), generator=generator)
    tables = torch.zeros(len(chunks), max(needed), dtype=torch.int64)
    for table, part in zip(tables, torch.split(ids, needed), strict=True):
        table[: len(part)] = part
    positions = torch.cat([torch.arange(length - new, length) for new, length in chunks])
    owners = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor(counts))
    slots = tables[owners, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    return StepInputs(
        token_ids=torch.randint(0, vocab, (starts[-1],), generator=generator),
        positions=positions,
        slot_mapping=slots,
        query_starts=tuple(starts),
        context_lengths=tuple(lengths),
        block_tables=tables,
        logit_rows=torch.tensor(starts[1:]) - 1,
        state_rows=torch.empty(0, dtype=torch.int64),
        sequence_ids=tuple(range(len(chunks))),
    )


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def attention_cases(
    level: str, sizes: KernelSizes, batches: Sequence[int], lengths: Sequence[int]
) -> Iterator[KernelCase]:
    """Decode attention of one layer: B sequences, one query each, over contexts of L tokens.

    Raises:
        NotSupported: the head dimension is one that native attention is not written for.
    """
    for kind in KVCacheDtype:
        for batch in batches:
            for length in lengths:
                yield _attention_case(level, sizes, kind, batch, length)


def _attention_case(
    level: str, sizes: KernelSizes, kind: KVCacheDtype, batch: int, length: int
) -> KernelCase:
    shape = KVShape(sizes.kv_heads, sizes.head_dim, sizes.head_dim)
    kernels = NativeKernels(level)
    per_sequence = -(-length // BLOCK_SIZE)
    kv = kernels.allocate_kv([shape], batch * per_sequence, BLOCK_SIZE, torch.bfloat16, CPU, kind)
    if not isinstance(kv, NativePagedKV):
        raise NotSupported(f"native attention has no head dimension {sizes.head_dim}")
    first = make_inputs([(length, length)], sizes.vocab)
    keys, values = _random(2, length, sizes.kv_heads, sizes.head_dim)
    kv.step(first).write(0, keys, values)
    blocks = kv.blocks[0]
    # `first` filled the first blocks, in any order; all sequences are copies of it.
    for begin in range(per_sequence, len(blocks), per_sequence):
        blocks[begin : begin + per_sequence] = blocks[:per_sequence]
    step = kv.step(make_inputs([(1, length)] * batch, sizes.vocab))
    query = _random(batch, sizes.heads, sizes.head_dim)
    spec = AttentionSpec(scale=sizes.head_dim**-0.5)
    return KernelCase(
        f"decode attention, {'plain' if kind is KVCacheDtype.AUTO else kind.value} cache",
        f"B={batch} L={length}",
        lambda: step.attend(0, query, spec),
        read_bytes=batch * per_sequence * blocks[0].nbytes,
        operations=4 * batch * length * sizes.heads * sizes.head_dim,
    )


def linear_cases(level: str, sizes: KernelSizes, rows: Sequence[int]) -> Iterator[KernelCase]:
    """The feed-forward layers and the head, in each form of weights that the level multiplies."""
    layers = (
        ("gate+up", 2 * sizes.wide, sizes.hidden, GATED_KINDS[Activation.SILU], torch.bfloat16),
        ("down", sizes.hidden, sizes.wide, PLAIN, torch.bfloat16),
        ("head", sizes.vocab, sizes.hidden, PLAIN, torch.float32),
    )
    for form, bits in BITS.items():
        if bits == 16 and not has_bf16_products(level):
            continue
        for name, outputs, inputs, kind, dtype in layers:
            if name == "head" and bits == 4:  # it keeps 8 bits in every quantisation
                continue
            weights = pack(level, bits, _random(outputs, inputs) * 0.02, None, kind)
            layer = NativeLinear(level, weights, dtype)
            for count in rows:
                yield _linear_case(layer, f"{form} {name}", count, inputs, outputs, weights.packed.nbytes)


def _linear_case(
    layer: NativeLinear, name: str, rows: int, inputs: int, outputs: int, read_bytes: int
) -> KernelCase:
    x = _random(rows, inputs)
    y = layer(x)
    return KernelCase(
        f"linear, {name}",
        f"rows={rows}",
        lambda: layer.write(x, y),
        read_bytes=read_bytes,
        operations=2 * rows * inputs * outputs,
    )


def row_cases(level: str, sizes: KernelSizes, rows: Sequence[int]) -> Iterator[KernelCase]:
    """Norms, rotary embedding with the writing of the cache, activation, quantiser."""
    for count in rows:
        yield from _row_cases(NativeKernels(level), sizes, count)


def _row_cases(kernels: NativeKernels, sizes: KernelSizes, rows: int) -> Iterator[KernelCase]:
    size = f"rows={rows}"
    x, residual, weight = _random(rows, sizes.hidden), _random(rows, sizes.hidden), torch.ones(sizes.hidden)
    yield KernelCase("RMS norm", size, lambda: kernels.rms_norm(x, weight, 1e-6))
    nothing = torch.zeros_like(x)  # so that sums do not grow from run to run
    yield KernelCase("add + RMS norm", size, lambda: kernels.add_rms_norm(residual, nothing, weight, 1e-6))
    gates = _random(rows, 2 * sizes.wide)
    for activation in Activation:
        yield KernelCase(
            f"gated {activation.value}",
            size,
            partial(kernels.gated_activation, gates, activation),
        )
    yield KernelCase("row quantiser", size, lambda: kernels.quantise_rows(x))
    shape = KVShape(sizes.kv_heads, sizes.head_dim, sizes.head_dim)
    inputs = make_inputs([(1, BLOCK_SIZE)] * rows, sizes.vocab)
    cos, sin = torch.ones(rows, sizes.head_dim), torch.zeros(rows, sizes.head_dim)
    for kind in KVCacheDtype:
        kv = kernels.allocate_kv([shape], rows, BLOCK_SIZE, torch.bfloat16, CPU, kind)
        step, qkv = kv.step(inputs), _random(rows, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim)
        yield KernelCase(
            f"rotary + cache write, {'plain' if kind is KVCacheDtype.AUTO else kind.value} cache",
            size,
            partial(step.rotate_write, 0, qkv, cos, sin),
        )


def sampling_cases(level: str, vocab: int, rows: int) -> Iterator[KernelCase]:
    """The sampler's whole step over rows of logits."""
    ways = {
        "greedy": SamplingParams(temperature=0),
        "temperature 0.8": SamplingParams(temperature=0.8),
        "top-k 50": SamplingParams(temperature=0.8, top_k=50),
        "top-p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    }
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * 2
    for name, params in ways.items():
        sampler = Sampler(vocab, rows, CPU, NativeTokenSampler(vocab, level))
        for seq in range(rows):
            sampler.start(SequenceStart(seq, (1,), 1, params, seed=seq))
        yield KernelCase(
            f"sampling, {name}",
            f"rows={rows} vocabulary={vocab}",
            partial(sampler.sample, logits, range(rows)),
            read_bytes=logits.nbytes,
        )


def step_cases(
    folder: Path, quantization: str, batches: Sequence[int], prefills: Sequence[int]
) -> Iterator[KernelCase]:
    """Steps of a model in bfloat16: B sequences of STEP_CONTEXT tokens and one more, or one prompt.

    Its kernels are the fastest ones here, as in a worker.

    Raises:
        ModelFormatError: there is no checkpoint in the folder.
    """
    steps = [(f"decode B={count}", [(1, STEP_CONTEXT + 1)] * count) for count in batches]
    steps += [(f"prefill {count}", [(count, count)]) for count in prefills]
    longest = max(length for _, chunks in steps for _, length in chunks)
    blocks = max(sum(-(-length // BLOCK_SIZE) for _, length in chunks) for _, chunks in steps)
    config = decoder_config(read_config(folder), longest)
    keep_float32 = quantization != "none"
    weights = DecoderWeights(
        folder, config, torch.bfloat16, CPU, lambda share: None, keep_float32=keep_float32
    )
    kernels = make_kernels(CPU)
    kv = kernels.allocate_kv(config.kv_shapes, blocks, BLOCK_SIZE, torch.bfloat16, CPU)
    model = NativeDecoder(weights, kernels, kv, quantization)
    if isinstance(kv, NativePagedKV):
        for layer in kv.blocks:
            layer.fill_(_TWO_NUMBERS)
    for name, chunks in steps:
        inputs = make_inputs(chunks, config.vocab_size)
        yield KernelCase(
            f"model step, {'bf16' if quantization == 'none' else quantization}",
            name,
            partial(model.forward, inputs),
        )
