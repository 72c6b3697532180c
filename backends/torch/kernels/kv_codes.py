"""Keys and values of one layer as 8-bit or 4-bit codes: how the reference keeps a quantised cache."""

import torch
from torch import Tensor

from .interface import KVCacheDtype

LARGEST = {KVCacheDtype.INT8: 127.0, KVCacheDtype.UINT4: 15.0}


def encode(x: Tensor, kind: KVCacheDtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of `x` [..., n], nearest to it, with a float32 scale and a zero [...] for each of its vectors.

    x is about scale * (code - zero). In 8 bits codes run from -127 to 127 and zero is 0; in 4 bits codes and
    zeros run from 0 to 15. The scale of a vector with an element that is not finite is no number.
    """
    x = x.float()
    low, high = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
    reach = high - low if kind is KVCacheDtype.UINT4 else torch.maximum(high, -low)
    codes = torch.full_like(reach, LARGEST[kind])
    scale = torch.where(x.isfinite().all(-1), reach / codes, torch.nan)
    factor = torch.where((reach > 0) & scale.isfinite(), codes / reach, 0.0)
    zero = torch.zeros_like(scale)
    if kind is KVCacheDtype.UINT4:
        zero = (-low * factor).nan_to_num_(0.0).round_()
    code = (x * factor[..., None]).nan_to_num_(0.0).round_() + zero[..., None]
    if kind is KVCacheDtype.UINT4:
        code.clamp_(0, 15)
    return code.to(torch.int8), scale, zero.to(torch.int8)


class CodedBlocks:
    """Codes int8 [rows, blocks, block size, bytes], scales and zeros [rows, blocks, block size].

    Rows are the key heads, then the value heads. Four-bit codes lie two in a byte, the first one low.
    """

    def __init__(
        self,
        kind: KVCacheDtype,
        rows: int,
        num_blocks: int,
        block_size: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, num_blocks, block_size)
        self._kind = kind
        self._width = width
        self._dtype = dtype
        self.codes = torch.empty(*shape, code_bytes(kind, width), dtype=torch.int8, device=device)
        self.scales = torch.empty(*shape, device=device)
        self.zeros = torch.zeros(*shape, dtype=torch.int8, device=device)
        self.clear(torch.tensor([num_blocks - 1], device=device))

    def clear(self, blocks: Tensor) -> None:
        """Make everything in these blocks zero."""
        self.scales.index_fill_(1, blocks, 0)

    def store(self, first: int, slots: Tensor, x: Tensor) -> None:
        """Put `x` [T, rows, n] into the slots [T] of the rows from `first` on."""
        codes, scales, zeros = encode(x.transpose(0, 1), self._kind)
        rows = slice(first, first + x.shape[1])
        self.scales[rows].flatten(1, 2).index_copy_(1, slots, scales)
        if self._kind is KVCacheDtype.UINT4:
            self.zeros[rows].flatten(1, 2).index_copy_(1, slots, zeros)
            padded = codes.new_zeros(*codes.shape[:2], 2 * self.codes.shape[-1])
            padded[..., : codes.shape[-1]] = codes
            codes = padded[..., ::2] | padded[..., 1::2] << 4
        self.codes[rows].flatten(1, 2)[..., : codes.shape[-1]].index_copy_(1, slots, codes)

    def gather(self, index: Tensor) -> Tensor:
        """Blocks `index`, counted over rows and blocks: [n, block size * width]."""
        codes = self.codes.flatten(0, 1).index_select(0, index)
        scales = self.scales.flatten(0, 1).index_select(0, index)
        if self._kind is KVCacheDtype.UINT4:
            codes = torch.stack((codes & 15, codes >> 4 & 15), -1).flatten(-2)[..., : self._width]
            codes = codes - self.zeros.flatten(0, 1).index_select(0, index)[..., None]
        # A scale of zero also silences codes that were never written.
        return (codes * scales[..., None]).to(self._dtype).flatten(1)


def code_bytes(kind: KVCacheDtype, width: int) -> int:
    """Bytes of the codes of one vector."""
    return width if kind is KVCacheDtype.INT8 else -(-width // 2)


def vector_bytes(kind: KVCacheDtype, width: int) -> int:
    """Bytes that one vector takes in all."""
    return code_bytes(kind, width) + 4 + 1
