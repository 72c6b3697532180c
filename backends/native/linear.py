"""Linear layers whose weights lie in the panels that the C++ kernels read.

Quantised weights are symmetric integers with one scale per output channel and, of 4 bits, a multiplier for
each group of inputs. Each row of activations becomes symmetric 8-bit integers with a scale of its own;
products are summed exactly in 32 bits. So a row's result depends neither on the rows beside it nor on the
level. Layers in bfloat16 sum each row in one order, whatever rows stand beside it; their weights are stored
in 12 bits, without loss, where they can be (csrc/linear_bf12.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..machine.cpu_level import usable_features
from ..machine.pages import reserve
from .library import load

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PANEL = 64
"""Output channels that are stored side by side."""
GROUP = 32
"""Inputs that the number of stored inputs is a multiple of; and that share a multiplier in 4-bit weights."""
MAX_INPUTS = 65536
"""Most inputs whose products 32 bits hold for certain."""
PLAIN = 0
"""Kind of a layer whose outputs are what its products are; a gated kind is 1 + that of `gated_activation`."""


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights of a layer y = x W^T + b, or of a gated one, y = activation(x G^T + b) * (x U^T + c)."""

    packed: Tensor
    """uint8: panels, one after the other."""
    scales: Tensor
    """[panels * PANEL] float32; zero where a panel has no channel. Of 12 and 16 bits: empty."""
    bias: Tensor | None
    """[panels * PANEL] float32."""
    bits: int
    """4 and 8: integers; 12 and 16: bfloat16."""
    inputs: int
    outputs: int
    """Of a gated layer: half the rows of its weight."""
    kind: int


def has_bf16_products(level: str) -> bool:
    """Whether a level has bfloat16 layers of its own, and they are the fastest ones.

    Where the CPU has tiles for bfloat16, oneDNN uses them and is faster.
    """
    return level == "avx512" and "amx_bf16" not in usable_features()


def count_panels(rows: int, gated: bool) -> int:
    """Panels of a weight with so many rows."""
    return -(-(rows // 2) // (PANEL // 2)) if gated else -(-rows // PANEL)


def panel_bytes(bits: int, inputs: int) -> int:
    """Bytes of one panel: its weights and, of 4 bits, a multiplier of 8 bits for each channel and group.

    16 bits are bfloat16 as it is.
    """
    groups = -(-inputs // GROUP)
    return PANEL * inputs * 2 if bits == 16 else groups * PANEL * (GROUP if bits == 8 else GROUP // 2 + 1)


def packed_bytes(bits: int, rows: int, inputs: int, *, gated: bool, bias: bool) -> int:
    """Bytes that `pack` fills for a weight [rows, inputs]; of 16 bits at most, as 12 may do."""
    floats = PANEL * (bias + (bits < 16))
    return count_panels(rows, gated) * (panel_bytes(bits, inputs) + 4 * floats)


def pack(level: str, bits: int, weight: Tensor, bias: Tensor | None, kind: int) -> PackedWeights:
    """Bring a weight [rows, inputs] into panels; a gated one holds all gates, then the others.

    It is bfloat16 or float32; for 16 bits, which only level "avx512" has, it is bfloat16 and has an even
    number of inputs. Then the layer gets 12 bits where that is shorter and loses nothing.
    """
    import torch

    gated = kind != PLAIN
    rows, inputs = weight.shape
    panels = count_panels(rows, gated)
    weight = weight.contiguous()
    if bits == 16:
        packed, bits = _pack_bfloat16(level, weight, panels, gated)
        scales = torch.empty(0)
    else:
        packed, scales = reserve(panels * panel_bytes(bits, inputs)), torch.empty(panels * PANEL)
        functions = load(level)
        quantise = functions.pack_int8 if bits == 8 else functions.pack_int4
        of_bfloat16 = int(weight.dtype == torch.bfloat16)
        where = (weight.data_ptr(), rows, inputs, int(gated), packed.data_ptr())
        quantise(of_bfloat16, *where, scales.data_ptr())
    outputs = rows // 2 if gated else rows
    return PackedWeights(packed, scales, _in_panels(bias, panels, gated), bits, inputs, outputs, kind)


def _pack_bfloat16(level: str, weight: Tensor, panels: int, gated: bool) -> tuple[Tensor, int]:
    """A bfloat16 weight in panels of 12 bits or, where they do not do, of 16; and which of them."""
    functions = load(level)
    rows, inputs = weight.shape
    shorter = functions.panel_bytes_bf12(inputs)
    if shorter < panel_bytes(16, inputs):
        packed = reserve(panels * shorter)
        if functions.pack_bf12(weight.data_ptr(), rows, inputs, int(gated), packed.data_ptr()):
            return packed, 12
    packed = reserve(panels * panel_bytes(16, inputs))
    functions.pack_bf16(weight.data_ptr(), rows, inputs, int(gated), packed.data_ptr())
    return packed, 16


def _in_panels(bias: Tensor | None, panels: int, gated: bool) -> Tensor | None:
    """The bias in the order of the panels' columns."""
    if bias is None:
        return None
    parts = bias.float().chunk(2) if gated else (bias.float(),)
    width = PANEL // len(parts)
    padded = [part.new_zeros(panels, width) for part in parts]
    for part, into in zip(parts, padded, strict=True):
        into.view(-1)[: part.shape[0]] = part
    return padded[0].flatten() if len(parts) == 1 else _side_by_side(padded)


def _side_by_side(halves: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(halves, dim=1).flatten()


class NativeLinear:
    """A packed layer at one level of CPU features; takes and gives float32 or bfloat16.

    A layer of 12 or 16 bits takes bfloat16 alone.
    """

    def __init__(self, level: str, weights: PackedWeights, out_dtype: torch.dtype) -> None:
        """`out_dtype` is float32 or bfloat16."""
        import torch

        functions = load(level)
        multiply: dict[int, Callable[..., None]] = {4: functions.linear_int4, 8: functions.linear_int8}
        if weights.bits > 8:
            multiply = {12: functions.linear_bf12, 16: functions.linear_bf16}
        self._torch = torch
        self._weights = weights
        self._multiply = multiply[weights.bits]
        self._out_dtype = out_dtype
        self._to_bf16 = int(out_dtype == torch.bfloat16)
        scales = (weights.scales.data_ptr(),) if weights.bits <= 8 else ()
        bias = 0 if weights.bias is None else weights.bias.data_ptr()
        self._addresses = (weights.packed.data_ptr(), *scales, bias, weights.kind)

    @property
    def outputs(self) -> int:
        """Numbers in a row of the result."""
        return self._weights.outputs

    def __call__(self, x: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs]."""
        y = self._torch.empty(x.shape[0], self._weights.outputs, dtype=self._out_dtype)
        self.write(x, y)
        return y

    def write(self, x: Tensor, y: Tensor) -> None:
        """Fill `y` [T, outputs], which is contiguous and of the layer's output type."""
        self.call(x if x.stride(1) == 1 else x.contiguous(), y)()

    def call(self, x: Tensor, y: Tensor) -> Callable[[], None]:
        """`write`, whenever called; rows of `x` are dense."""
        weights = self._weights
        # Layers of 12 and 16 bits are not asked what they take.
        takes = () if weights.bits > 8 else (int(x.dtype == self._torch.bfloat16),)
        return partial(
            self._multiply,
            *takes,
            self._to_bf16,
            x.data_ptr(),
            x.stride(0),
            x.shape[0],
            weights.inputs,
            *self._addresses,
            y.data_ptr(),
            weights.outputs,
            weights.outputs,
        )
