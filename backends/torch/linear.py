"""Linear layers in the layout that the device multiplies fastest."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .weights import LinearWeights

PACKING_ROWS = 16
"""Rows of input that oneDNN lays the weight out for: as fast for one row or hundreds as any other number."""


class Linear(Protocol):
    """y = x weight^T + bias."""

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


def is_packed(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `make_linear` lays out weights of this type anew, into memory of their own."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def make_linear(weights: LinearWeights) -> Linear:
    """The fastest layer for these weights; it keeps the given tensor only if it is not packed."""
    weight = weights.weight
    if not is_packed(weight.dtype, weight.device):
        return DenseLinear(weights)
    return PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight, PACKING_ROWS), weights.bias)
