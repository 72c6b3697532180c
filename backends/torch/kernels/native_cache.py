"""NativePagedKV: keys and values in the layout of the C++ extension, and attention over them."""

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from ...machine.pages import reserve
from ...native import load
from .interface import AttentionSpec, KVCacheDtype, KVShape
from .step_inputs import StepInputs

KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""Element types by the numbers of the native kernels."""
MAX_DIM = 512
"""Largest head dimension that attention is written for."""
_MODES = {KVCacheDtype.AUTO: 0, KVCacheDtype.INT8: 1, KVCacheDtype.UINT4: 2}
_TASK_ROWS, _TILE, _PARTIAL_BYTES = 96, 128, 32 << 20
"""MOST_ROWS, TILE and MOST_PARTIAL_BYTES of backends/native/csrc/attention*."""


def attends_natively(shapes: Sequence[KVShape], block_size: int, dtype: torch.dtype) -> bool:
    """Whether the native kernels attend over such a cache; what they do not, the reference does."""
    return (
        dtype in KINDS
        and block_size % 16 == 0
        and all(s.key_dim == s.value_dim and s.key_dim % 8 == 0 and s.key_dim <= MAX_DIM for s in shapes)
    )


def scratch_bytes(shapes: Sequence[KVShape], num_heads: int, threads: int) -> int:
    """Upper estimate of the memory that native attention keeps for itself."""
    per_thread = 0
    for shape in shapes:
        rows = max(_TASK_ROWS, num_heads // shape.num_kv_heads) + 16
        tile = _TILE * (2 * shape.key_dim + 34)  # keys and values of a quantised cache, taken apart
        per_thread = max(per_thread, 4 * (rows * (2 * shape.key_dim + 16 + 2 * _TILE + 36) + tile))
    return threads * per_thread + _PARTIAL_BYTES


def head_units(dim: int, block_size: int, dtype: torch.dtype, kind: KVCacheDtype) -> int:
    """Units of four bytes that a block holds per head, as backends/native/csrc/cache.h lays it out."""
    if kind is KVCacheDtype.AUTO:
        return (dim + -(-dim // 16) * 16) * block_size * dtype.itemsize // 4
    if kind is KVCacheDtype.INT8:
        return (dim + -(-dim // 16) * 16 + 8) * block_size // 4
    return (dim // 2 + -(-dim // 32) * 16 + 10) * block_size // 4


class NativePagedKV:
    """One tensor [blocks, kv heads, units] per layer, laid out as backends/native/csrc/cache.h says."""

    def __init__(
        self,
        level: str,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        kind: KVCacheDtype,
    ) -> None:
        self.functions = load(level)
        self.shapes = tuple(shapes)
        self.block_size = block_size
        self.dtype = dtype
        self.kind = KINDS[dtype]
        self.mode = _MODES[kind]
        sizes = [(num_blocks, s.num_kv_heads, head_units(s.key_dim, block_size, dtype, kind)) for s in shapes]
        # Blocks lie scattered; see `reserve` for what that would cost in small pages.
        memory = reserve(4 * sum(prod(size) for size in sizes)).view(torch.int32)
        self.blocks = [
            part.view(size)
            for part, size in zip(torch.split(memory, [prod(size) for size in sizes]), sizes, strict=True)
        ]
        self.addresses = [blocks.data_ptr() for blocks in self.blocks]

    def step(self, inputs: StepInputs) -> "NativeKVStep":
        """See `PagedKV`."""
        step = NativeKVStep(
            self, len(inputs.context_lengths), inputs.query_starts[-1], inputs.block_tables.shape[1]
        )
        step.fill(inputs)
        return step


class NativeKVStep:
    """Steps over a NativePagedKV, one at a time, that have as many chunks, tokens and columns of tables.

    What a call got from here reads of a step is what `fill` wrote last.
    """

    def __init__(self, kv: NativePagedKV, chunks: int, tokens: int, columns: int) -> None:
        self._kv = kv
        self._tokens = tokens
        self._slots = torch.empty(tokens, dtype=torch.int64)
        self._tables = torch.zeros(chunks, columns, dtype=torch.int64)
        self._order = array("q", bytes(8 * chunks))
        self._starts = array("q", bytes(8 * (chunks + 1)))
        self._lengths = array("q", bytes(8 * chunks))
        self._clears = array("B", bytes(tokens))
        self._plan = (
            chunks,
            self._order.buffer_info()[0],
            self._starts.buffer_info()[0],
            self._lengths.buffer_info()[0],
            self._tables.data_ptr(),
            columns,
        )

    @property
    def columns(self) -> int:
        """Most blocks that a chunk may have."""
        return self._tables.shape[1]

    def fill(self, inputs: StepInputs) -> None:
        """Begin a step."""
        lengths = inputs.context_lengths
        # Arrays stay where they are as long as their length does.
        self._order[:] = array("q", sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True))
        self._starts[:] = array("q", inputs.query_starts)
        self._lengths[:] = array("q", lengths)
        self._clears[:] = _clears(inputs, self._kv.block_size)
        self._slots.copy_(inputs.slot_mapping)
        self._tables[:, : inputs.block_tables.shape[1]] = inputs.block_tables

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `KVStep`."""
        key = key if key.stride(2) == 1 else key.contiguous()
        value = value if value.stride(2) == 1 else value.contiguous()
        self.write_call(layer, key, value)()

    def write_call(self, layer: int, key: Tensor, value: Tensor) -> Callable[[], None]:
        """`write`, whenever called; heads are dense."""
        return partial(
            self._kv.functions.write,
            *self._store(layer),
            key.data_ptr(),
            key.stride(0),
            key.stride(1),
            value.data_ptr(),
            value.stride(0),
            value.stride(1),
        )

    def rotate_write(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """See `KVStep`."""
        if not qkv.is_contiguous():
            raise ValueError("queries, keys and values must lie together")
        self.rotate_write_call(layer, qkv, cos, sin)()

    def rotate_write_call(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Callable[[], None]:
        """`rotate_write`, whenever called."""
        return partial(
            self._kv.functions.rotate_write,
            *self._store(layer),
            qkv.data_ptr(),
            qkv.shape[1] - 2 * self._kv.shapes[layer].num_kv_heads,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[1],
        )

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        """See `KVStep`."""
        if query.stride(2) != 1 or query.stride(1) != query.shape[2]:
            query = query.contiguous()
        out = torch.empty(query.shape, dtype=self._kv.dtype)
        self.attend_call(layer, query, spec, out)()
        return out

    def attend_call(self, layer: int, query: Tensor, spec: AttentionSpec, out: Tensor) -> Callable[[], None]:
        """`attend` into `out` [T, heads, dim], whenever called; the queries of a token lie together."""
        chunks, order, starts, lengths, tables, columns = self._plan
        return partial(
            self._kv.functions.attend,
            *self._layout(layer),
            query.data_ptr(),
            query.stride(0),
            out.data_ptr(),
            query.shape[1],
            chunks,
            order,
            starts,
            lengths,
            tables,
            columns,
            spec.scale,
            spec.softcap or 0.0,
            spec.window or 0,
        )

    def _layout(self, layer: int) -> tuple[int, int, int, int, int, int]:
        kv, shape = self._kv, self._kv.shapes[layer]
        return kv.kind, kv.addresses[layer], shape.num_kv_heads, shape.key_dim, kv.block_size, kv.mode

    def _store(self, layer: int) -> tuple[int, int, int, int, int, int, int, int, int]:
        clears = self._clears.buffer_info()[0]
        return (*self._layout(layer), self._slots.data_ptr(), clears, self._tokens)


def _clears(inputs: StepInputs, block_size: int) -> "array[int]":
    """Per token: is it its chunk's last one, in a block that the chunk began and leaves partly filled?"""
    starts = inputs.query_starts
    clears = array("B", bytes(starts[-1]))
    for i, length in enumerate(inputs.context_lengths):
        if 0 < length % block_size <= starts[i + 1] - starts[i]:
            clears[starts[i + 1] - 1] = 1
    return clears
