"""TorchKernels: the kernel interface in plain torch, on any device; the reference of all others."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .attention_plan import AttentionPlan, plan_attention
from .interface import Activation, AttentionSpec, KVCacheDtype, KVShape
from .kv_codes import CodedBlocks, vector_bytes
from .step_inputs import StepInputs

GROUP_BYTES = 16 << 20
"""Most bytes of keys and values that decode chunks gather at a time, unless one chunk alone has more."""
MAX_SCORES = 1 << 24
"""Most attention scores that the soft-capped path holds at a time."""


class TorchKernels:
    """Kernels made of torch operators."""

    def kv_bytes_per_block(
        self,
        shapes: Sequence[KVShape],
        block_size: int,
        dtype: torch.dtype,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> int:
        """See `Kernels`."""
        if kind is KVCacheDtype.AUTO:
            return sum(2 * s.num_kv_heads * _width(s) for s in shapes) * block_size * dtype.itemsize
        return sum(2 * s.num_kv_heads * vector_bytes(kind, _width(s)) for s in shapes) * block_size

    def allocate_kv(
        self,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> "TorchPagedKV":
        """See `Kernels`."""
        return TorchPagedKV(shapes, num_blocks, block_size, dtype, device, kind)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed: Tensor = (x * scale).mul_(weight)
        return normed.to(x.dtype)

    def rms_norm_(self, x: Tensor, weight: Tensor, eps: float) -> None:
        """See `Kernels`."""
        x.copy_(self.rms_norm(x, weight, eps))

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        return self.rms_norm(residual.add_(x), weight, eps)

    def gated_activation(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See `Kernels`."""
        gate, up = gate_up.chunk(2, dim=-1)
        if activation is Activation.SILU:
            return F.silu(gate).mul_(up)
        return F.gelu(gate, approximate="tanh" if activation is Activation.GELU_TANH else "none").mul_(up)

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        x = x.float()
        largest = x.abs().amax(-1)
        factors = torch.where(largest > 0, torch.full_like(largest, 127.0) / largest, 0.0)
        return (x * factors[:, None]).round_().to(torch.int8), largest / 127.0


def _width(shape: KVShape) -> int:
    return max(shape.key_dim, shape.value_dim)


class TorchPagedKV:
    """One tensor [2 kv heads, blocks + 1, block size, width] per layer: the key heads, then the value heads.

    With the heads outermost, gathered blocks are contiguous per head and attention reads them as they lie.
    The block after the last one belongs to nobody and stays zero: padding points at it.
    """

    def __init__(
        self,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> None:
        self.shapes = tuple(shapes)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._itemsize = dtype.itemsize
        # Left as it is found, so that memory is taken only as blocks are filled.
        self.blocks: list[Tensor] = []
        self.codes: list[CodedBlocks] = []
        for s in shapes:
            size = (2 * s.num_kv_heads, num_blocks + 1, block_size, _width(s))
            if kind is KVCacheDtype.AUTO:
                self.blocks.append(torch.empty(size, dtype=dtype, device=device))
                self.blocks[-1][:, num_blocks] = 0
            else:
                self.codes.append(CodedBlocks(kind, *size, dtype, device))
        self._scratch = torch.empty(0, dtype=dtype, device=device)
        self._head_offsets = {
            heads: torch.arange(heads, device=device) * (num_blocks + 1)
            for heads in {2 * s.num_kv_heads for s in shapes}
        }

    def step(self, inputs: StepInputs) -> "TorchKVStep":
        """See `PagedKV`."""
        begun = _begun_blocks(inputs, self.block_size)
        if begun is not None:
            for blocks in self.blocks:
                blocks.index_fill_(1, begun, 0)
            for codes in self.codes:
                codes.clear(begun)
        return TorchKVStep(self, inputs)

    def head_offsets(self, heads: int) -> Tensor:
        """[heads] row of each head's first block, when heads and blocks are counted in one."""
        return self._head_offsets[heads]

    def block_bytes(self, layer: int) -> int:
        """Bytes of one gathered block of a layer."""
        shape = self.shapes[layer]
        return 2 * shape.num_kv_heads * self.block_size * _width(shape) * self._itemsize

    def store(self, layer: int, first: int, slots: Tensor, x: Tensor) -> None:
        """Put `x` [T, n, dim] into the slots of the layer's heads from `first` on, keys before values."""
        if self.codes:
            self.codes[layer].store(first, slots, x)
        else:
            rows = self.blocks[layer][first : first + x.shape[1]].flatten(1, 2)
            rows[:, :, : x.shape[-1]].index_copy_(1, slots, x.transpose(0, 1))

    def gather(self, layer: int, index: Tensor) -> Tensor:
        """Rows `index` (flat over heads and blocks) of a layer, in memory that the next call reuses."""
        if self.codes:
            return self.codes[layer].gather(index)
        rows = self.blocks[layer].flatten(0, 1).flatten(1)
        size = index.shape[0] * rows.shape[1]
        if self._scratch.shape[0] < size:
            self._scratch = rows.new_empty(size)
        return torch.index_select(rows, 0, index, out=self._scratch[:size].view(-1, rows.shape[1]))


def _begun_blocks(inputs: StepInputs, block_size: int) -> Tensor | None:
    """Ids of the blocks that a chunk starts to write and leaves partly filled.

    What a former owner left behind could be infinite or no number, and neither a masked score nor a weight of
    zero undoes that; so these blocks are cleared before they are written.
    """
    starts = inputs.query_starts
    begun = [
        (i, length // block_size)
        for i, length in enumerate(inputs.context_lengths)
        if 0 < length % block_size <= starts[i + 1] - starts[i]
    ]
    if not begun:
        return None
    rows, columns = torch.tensor(begun, device=inputs.block_tables.device).unbind(1)
    return inputs.block_tables[rows, columns]


class TorchKVStep:
    """One step over a TorchPagedKV; what depends on the window or the number of heads is planned once."""

    def __init__(self, kv: TorchPagedKV, inputs: StepInputs) -> None:
        self._kv = kv
        self._inputs = inputs
        self._plans: dict[tuple[int | None, int, bool], AttentionPlan] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `KVStep`."""
        heads = self._kv.shapes[layer].num_kv_heads
        self._kv.store(layer, 0, self._inputs.slot_mapping, key)
        self._kv.store(layer, heads, self._inputs.slot_mapping, value)

    def rotate_write(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """See `KVStep`."""
        heads = self._kv.shapes[layer].num_kv_heads
        width = cos.shape[-1]
        rotated = qkv[:, :-heads, :width]
        x = rotated.float()
        rotated.copy_(x * cos[:, None] + x.roll(width // 2, -1).mul_(sin[:, None]))
        self._kv.store(layer, 0, self._inputs.slot_mapping, qkv[:, -2 * heads :])

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        """See `KVStep`."""
        shape = self._kv.shapes[layer]
        plan = self._plan(layer, spec, query.dtype)
        out = query.new_empty(query.shape[0], query.shape[1], shape.value_dim)
        heads, dim = shape.num_kv_heads, shape.key_dim
        for group in plan.decodes:
            count = group.rows.shape[0]
            key, value = self._gather(layer, group.index, count)
            grouped = query.index_select(0, group.rows).view(count, heads, -1, dim)
            result = _attention(grouped, key, value, group.mask, spec)[..., : shape.value_dim]
            out.index_copy_(0, group.rows, result.flatten(1, 2))
        for tile in plan.tiles:
            rows = query[tile.begin : tile.end]
            rows = rows.view(rows.shape[0], heads, -1, dim).permute(1, 2, 0, 3)
            keys, values = self._gather(layer, tile.index, 1)
            key = keys[0, :, None, : tile.length].expand(-1, rows.shape[1], -1, -1)
            value = values[0, :, None, : tile.length].expand(-1, rows.shape[1], -1, -1)
            result = _attention(rows, key, value, tile.mask, spec)[..., : shape.value_dim]
            out[tile.begin : tile.end] = result.permute(2, 0, 1, 3).flatten(1, 2)
        return out

    def _plan(self, layer: int, spec: AttentionSpec, dtype: torch.dtype) -> AttentionPlan:
        heads = self._kv.shapes[layer].num_kv_heads
        key = (spec.window, heads, spec.softcap is None)
        if key not in self._plans:
            self._plans[key] = plan_attention(
                self._inputs,
                window=spec.window,
                causal_kernel=spec.softcap is None,
                block_size=self._kv.block_size,
                head_offsets=self._kv.head_offsets(2 * heads),
                spare_block=self._kv.num_blocks,
                group_blocks=GROUP_BYTES // self._kv.block_bytes(layer),
                dtype=dtype,
            )
        return self._plans[key]

    def _gather(self, layer: int, index: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, kv heads, length, dim] of the blocks that `index` names.

        Values come in the width of the cache, zeros behind them: torch's fast attention wants them no
        narrower than the keys.
        """
        shape = self._kv.shapes[layer]
        heads = shape.num_kv_heads
        rows = self._kv.gather(layer, index)
        both = rows.view(2 * heads, sequences, -1, _width(shape)).transpose(0, 1)
        return both[:, :heads, :, : shape.key_dim], both[:, heads:]


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """Attention over the last two dimensions; without a mask it is causal from position 0."""
    if spec.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=spec.scale
        )
    if mask is None:
        raise ValueError("soft-capped attention needs a mask")
    batch = query.shape[0] * query.shape[1]
    rows = max(1, MAX_SCORES // (batch * key.shape[2]))
    parts = []
    for begin in range(0, query.shape[2], rows):
        scores = torch.matmul(query[:, :, begin : begin + rows], key.transpose(-1, -2)).float()
        scores = scores.mul_(spec.scale / spec.softcap).tanh_().mul_(spec.softcap)
        scores += mask if mask.shape[-2] == 1 else mask[..., begin : begin + rows, :]
        parts.append(torch.matmul(scores.softmax(-1).to(value.dtype), value))
    return torch.cat(parts, dim=2)
