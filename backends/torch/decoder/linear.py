"""Linear layers in the layout that the device multiplies fastest, quantised or not."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...native import Missing, best_level
from ...native.linear import PLAIN, NativeLinear, has_bf16_products, pack, packed_bytes
from ..kernels.interface import Activation, Kernels
from .quantisation import BITS, OneDnnInt8Linear
from .weights import LinearWeights

PACKING_ROWS = 16
"""Rows of input that oneDNN lays the weight out for: as fast for one row or hundreds as any other number."""
GATED_ROWS = 512
"""Rows whose gates a CPU computes at a time."""
KEPT_BYTES = 64 << 20
"""Most bytes of logits whose memory is kept from step to step."""
GATED_KINDS = {Activation.SILU: 1, Activation.GELU: 2, Activation.GELU_TANH: 3}
"""Kinds of gated layers, by the numbers of the native kernels."""


class Linear(Protocol):
    """y = x weight^T + bias; of a gated layer, activation(gate) * up."""

    def __call__(self, x: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs]."""


@dataclass(frozen=True, slots=True)
class DenseLinear:
    """The weight as it is."""

    weights: LinearWeights

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        return F.linear(x, self.weights.weight, self.weights.bias)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The weight in oneDNN's blocked layout, where few rows cost little more than reading it once."""

    packed: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


@dataclass(frozen=True, slots=True)
class GatedLinear:
    """A layer that gives gates and their partners, and the activation after it."""

    gate_up: Linear
    activation: Activation
    kernels: Kernels
    rows_at_once: int | None
    """Most rows whose gates exist at the same time: on a CPU, what stays in the cache. None: all."""

    def __call__(self, x: Tensor) -> Tensor:
        """See `Linear`."""
        step = self.rows_at_once
        if step is None or x.shape[0] <= step:
            return self.kernels.gated_activation(self.gate_up(x), self.activation)
        parts = (x[begin : begin + step] for begin in range(0, x.shape[0], step))
        return torch.cat([self.kernels.gated_activation(self.gate_up(p), self.activation) for p in parts])


class Head:
    """The layer that gives logits in float32, in memory that the next call uses again.

    They are by far the largest tensor of a step, and new memory costs about as much as computing them.
    """

    def __init__(self, linear: Linear, vocab_size: int) -> None:
        self._linear = linear
        self._vocab_size = vocab_size
        self._memory: Tensor | None = None

    @property
    def is_native(self) -> bool:
        """Whether the native kernels compute it."""
        return isinstance(self._linear, NativeLinear)

    def __call__(self, h: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab]."""
        rows = h.shape[0]
        logits = None if self._memory is None else self._memory[:rows]
        if logits is None or logits.shape[0] < rows:
            logits = torch.empty(rows, self._vocab_size, device=h.device)
            if logits.nbytes <= KEPT_BYTES:
                self._memory = logits
        if isinstance(self._linear, NativeLinear):
            self._linear.write(h, logits)
        else:
            logits.copy_(self._linear(h))
        return logits


def is_packed(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether float weights of this type are laid out anew, into memory of their own."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def panel_level(dtype: torch.dtype, device: torch.device, inputs: int) -> str | None:
    """The level whose panels are the fastest layout of unquantised weights; None: another layout is."""
    level = best_level()
    if isinstance(level, Missing) or device.type != "cpu" or dtype != torch.bfloat16 or inputs % 2:
        return None
    return level if has_bf16_products(level) else None


class LinearMaker:
    """Makes the fastest layers for a device, a type of activations and a quantisation."""

    def __init__(self, dtype: torch.dtype, device: torch.device, quantization: str, kernels: Kernels) -> None:
        """`quantization` is one that `quantisation.check_quantization` lets pass."""
        self._dtype = dtype
        self._device = device
        self._packed = is_packed(dtype, device)
        self._gated_rows = GATED_ROWS if device.type == "cpu" else None
        self._bits = BITS[quantization]
        self._kernels = kernels
        level = best_level()
        self._level = None if isinstance(level, Missing) else level

    def linear(self, weights: LinearWeights) -> Linear:
        """A layer; it keeps the given tensor only if it is neither quantised nor packed."""
        if self._bits is None:
            return self._float(weights, PLAIN, self._dtype)
        return self._quantised(weights, PLAIN, self._bits, self._dtype)

    def gated(self, weights: LinearWeights, activation: Activation) -> Linear:
        """A layer whose weight holds all gates, then their partners."""
        if self._bits is None and panel_level(self._dtype, self._device, weights.weight.shape[1]) is not None:
            return self._float(weights, GATED_KINDS[activation], self._dtype)
        if self._bits is None or self._level is None:
            return GatedLinear(self.linear(weights), activation, self._kernels, self._gated_rows)
        return self._quantised(weights, GATED_KINDS[activation], self._bits, self._dtype)

    def head(self, weight: Tensor) -> Head:
        """The layer that gives logits."""
        weights = LinearWeights(weight, None)
        if self._bits is None:
            return Head(self._float(weights, PLAIN, torch.float32), weight.shape[0])
        return Head(self._quantised(weights, PLAIN, HEAD_BITS, torch.float32), weight.shape[0])

    def _float(self, weights: LinearWeights, kind: int, dtype: torch.dtype) -> Linear:
        """`dtype` is that of the outputs where the layout has a choice."""
        level = panel_level(self._dtype, self._device, weights.weight.shape[1])
        if level is not None:
            return NativeLinear(level, pack(level, 16, weights.weight, weights.bias, kind), dtype)
        if not self._packed:
            return DenseLinear(weights)
        return PackedLinear(
            torch.ops.mkldnn._reorder_linear_weight(weights.weight, PACKING_ROWS), weights.bias
        )

    def _quantised(self, weights: LinearWeights, kind: int, bits: int, dtype: torch.dtype) -> Linear:
        if self._level is None:
            return OneDnnInt8Linear.make(weights.weight, weights.bias, dtype)
        return NativeLinear(self._level, pack(self._level, bits, weights.weight, weights.bias, kind), dtype)


HEAD_BITS = 8
"""The head's weights keep 8 bits in every quantisation: an error in a channel is one in a token's logit."""


def linear_bytes(
    rows: int,
    inputs: int,
    *,
    bias: bool,
    gated: bool,
    dtype: torch.dtype,
    device: torch.device,
    bits: int | None,
) -> int:
    """Bytes that a layer with a weight [rows, inputs] takes."""
    if bits is None and panel_level(dtype, device, inputs) is not None:
        bits = 16
    if bits is None:
        return (rows * inputs + bias * rows) * dtype.itemsize
    return packed_bytes(bits, rows, inputs, gated=gated, bias=bias)
