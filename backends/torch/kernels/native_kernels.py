"""NativeKernels: the kernel interface by the C++ extension, on CPUs, in float32 and bfloat16."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...native import Missing, best_level, load
from .interface import Activation, Kernels, KVCacheDtype, KVShape, PagedKV
from .native_cache import KINDS, NativePagedKV, attends_natively, head_units
from .torch_kernels import TorchKernels

_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}


def make_kernels(device: torch.device) -> Kernels:
    """The fastest kernels for a device: native ones on a CPU where they were built."""
    level = best_level() if device.type == "cpu" else None
    return TorchKernels() if level is None or isinstance(level, Missing) else NativeKernels(level)


class NativeKernels:
    """Kernels of one level of CPU features. Other element types than float32 and bfloat16 go to torch."""

    def __init__(self, level: str) -> None:
        """Take one of the levels that `millstream.backends.native.levels` gives."""
        self.level = level
        self._functions = load(level)
        self._reference = TorchKernels()

    def kv_bytes_per_block(
        self,
        shapes: Sequence[KVShape],
        block_size: int,
        dtype: torch.dtype,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> int:
        """See `Kernels`."""
        if not attends_natively(shapes, block_size, dtype):
            return self._reference.kv_bytes_per_block(shapes, block_size, dtype, kind)
        return sum(s.num_kv_heads * head_units(s.key_dim, block_size, dtype, kind) * 4 for s in shapes)

    def allocate_kv(
        self,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> PagedKV:
        """See `Kernels`; one of the reference's for shapes that `attends_natively` refuses."""
        if not attends_natively(shapes, block_size, dtype):
            return self._reference.allocate_kv(shapes, num_blocks, block_size, dtype, device, kind)
        return NativePagedKV(self.level, shapes, num_blocks, block_size, dtype, kind)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if x.dtype not in KINDS:
            return self._reference.rms_norm(x, weight, eps)
        out = torch.empty(x.shape, dtype=x.dtype)
        if x.dim() > 3 or x.stride(-1) != 1:
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            self.norm_call(flat, weight, eps, out.view(-1, x.shape[-1]))()
        else:
            self.norm_call(x, weight, eps, out)()
        return out

    def rms_norm_(self, x: Tensor, weight: Tensor, eps: float) -> None:
        """See `Kernels`."""
        if x.dtype not in KINDS or x.dim() > 3 or x.stride(-1) != 1:
            self._reference.rms_norm_(x, weight, eps)
        else:
            self.norm_call(x, weight, eps, x)()

    def norm_call(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Callable[[], None]:
        """`rms_norm` of `x` into `out`, which may be `x`, whenever called.

        Both have two or three dimensions, the last one dense.
        """
        inner = x.shape[1] if x.dim() == 3 else 1
        return partial(
            self._functions.rms_norm,
            KINDS[x.dtype],
            x.data_ptr(),
            x.stride(0),
            x.stride(1),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            out.stride(0),
            out.stride(1),
            x.shape[0],
            inner,
            x.shape[-1],
        )

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels`."""
        if residual.dtype not in KINDS or not residual.is_contiguous():
            return self._reference.add_rms_norm(residual, x, weight, eps)
        out = torch.empty_like(residual)
        self.add_norm_call(residual, x.contiguous(), weight, eps, out)()
        return out

    def add_norm_call(
        self, residual: Tensor, x: Tensor, weight: Tensor, eps: float, out: Tensor
    ) -> Callable[[], None]:
        """`add_rms_norm` into `out`, whenever called. All tensors are contiguous."""
        n = residual.shape[-1]
        return partial(
            self._functions.add_rms_norm,
            KINDS[residual.dtype],
            residual.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            residual.numel() // n,
            n,
        )

    def gated_activation(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """See `Kernels`."""
        kind = KINDS.get(gate_up.dtype)
        if kind is None:
            return self._reference.gated_activation(gate_up, activation)
        gate_up = gate_up.contiguous()
        rows, n = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(rows, n, dtype=gate_up.dtype)
        self._functions.gated_activation(
            kind, _ACTIVATIONS[activation], gate_up.data_ptr(), out.data_ptr(), rows, n
        )
        return out

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernels`."""
        kind = KINDS.get(x.dtype)
        if kind is None:
            return self._reference.quantise_rows(x)
        if x.stride(1) != 1:
            x = x.contiguous()
        rows, n = x.shape
        out, scales = torch.empty(rows, n, dtype=torch.int8), torch.empty(rows)
        self._functions.quantise_rows(
            kind, x.data_ptr(), x.stride(0), out.data_ptr(), scales.data_ptr(), rows, n
        )
        return out, scales
