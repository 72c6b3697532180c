"""Which quantisations of weights run where, and the 8-bit layer made of torch's own operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from ....errors import InvalidArgument, NotSupported
from ...native import Missing, best_level
from ...worker import QUANTIZATIONS

BITS: Mapping[str, int | None] = MappingProxyType({"none": None, "int8": 8, "int4": 4})
"""Bits of a weight in a layer, by the names of QUANTIZATIONS."""
_DTYPES = ("float32", "bfloat16")
_HALF_ZERO = 64
"""What oneDNN, whose activations have no sign, is to take for zero in half an activation: -64 to 64."""


def check_quantization(
    quantization: str, *, native: bool, device: str, dtype: str, architecture: str
) -> None:
    """Refuse what cannot be done here.

    Args:
        native: whether the native decoder runs the model.

    Raises:
        InvalidArgument: there is no such quantisation.
        NotSupported: this model, device or build cannot do it; the message says why.
    """
    if quantization not in QUANTIZATIONS:
        raise InvalidArgument("quantization", quantization, ", ".join(QUANTIZATIONS))
    if quantization == "none":
        return
    asked = f"quantization {quantization!r}"
    if device != "cpu":
        raise NotSupported(f"{asked} runs on the CPU only, not on {device}")
    if not native:
        raise NotSupported(f"{asked} needs a family that the native decoder runs; {architecture} is none")
    if dtype not in _DTYPES:
        raise NotSupported(f"{asked} needs activations in {' or '.join(_DTYPES)}, not in {dtype}")
    level = best_level()
    if not isinstance(level, Missing):
        return
    if quantization == "int4" or "onednn" not in torch.backends.quantized.supported_engines:
        raise NotSupported(f"{asked} needs the native kernels, which are {level.reason}")


@dataclass(frozen=True, slots=True)
class OneDnnInt8Linear:
    """8-bit weights, one scale per output channel, and 8-bit activations, one scale per row, by oneDNN."""

    packed: Tensor
    scales: Tensor
    """[outputs] float32."""
    zero_points: Tensor
    """[outputs] int64, all zero."""
    bias: Tensor | None
    dtype: torch.dtype
    """Of the outputs."""

    @classmethod
    def make(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Self:
        """Quantise a weight [outputs, inputs]."""
        values, scales = quantise_rows(weight)
        packed = torch.ops.onednn.qlinear_prepack(values, None)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        return cls(packed, scales, zeros, None if bias is None else bias.float(), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs].

        Without VNNI, oneDNN adds pairs of products of an unsigned and a signed byte in 16 bits, which
        saturate. Activations go in as two halves of 7 bits each, so that no pair exceeds 2 * 128 * 127 and
        the sums are exact on every CPU; weights are still read once.
        """
        values, scales = quantise_rows(x)
        upper = values >> 1
        halves = torch.cat((upper, values - upper))
        sums: Tensor = torch.ops.onednn.qlinear_pointwise(
            (halves + _HALF_ZERO).to(torch.uint8),
            1.0,
            _HALF_ZERO,
            self.packed,
            self.scales,
            self.zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        y = (sums[: len(x)] + sums[len(x) :]) * scales[:, None]
        return (y if self.bias is None else y + self.bias).to(self.dtype)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[R, n] -> int8 [R, n] from -127 to 127 and float32 scales [R], so that x is about scale * int8."""
    x = x.float()
    top = x.abs().amax(1)
    factor = torch.where(top > 1e-30, torch.full_like(top, 127.0) / top, 0.0)
    return (x * factor[:, None]).round_().to(torch.int8), top / 127.0
