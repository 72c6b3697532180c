"""The kernel interface of the torch worker: paged keys and values, attention over them, norms, activations.

The physical layout of keys and values belongs to whoever implements `Kernels`; nobody else looks at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from .step_inputs import StepInputs


class KVCacheDtype(Enum):
    """How a cache holds keys and values: as they are, or in codes with a scale per token and head."""

    AUTO = "auto"
    INT8 = "int8"
    UINT4 = "uint4"


@dataclass(frozen=True, slots=True)
class KVShape:
    """Keys and values of one layer, per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How one layer attends: causal always, the rest as said here."""

    scale: float
    """Factor of the query-key products."""
    window: int | None = None
    """A token at position p sees positions p - window + 1 to p; None: all up to p."""
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap); None leaves them alone."""


class Activation(Enum):
    """Activation of a gated feed-forward layer."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


class KVStep(Protocol):
    """The cache as seen by one step. Every layer writes first, then attends, so chunks may share blocks."""

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store the step's keys [T, kv heads, key dim] and values [T, kv heads, value dim] of a layer."""

    def rotate_write(self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Apply rotary embedding to queries and keys in place, then store keys and values.

        `qkv` is [T, heads + 2 kv heads, dim]: queries, keys, values. `cos` and `sin` are [T, r] float32,
        r <= dim and even, the first half of `sin` negated. With h = r / 2, element i < r becomes
        x[i] * cos[i] + x[i + h or i - h] * sin[i]; elements from r on are left as they are. All three tensors
        are contiguous.
        """

    def attend(self, layer: int, query: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention of `query` [T, heads, key dim] over its chunks' contexts: [T, heads, value dim].

        Query head h reads key head h // (heads / kv heads).
        """


class PagedKV(Protocol):
    """Keys and values of all layers in blocks; position p is in block `block_table[p // block_size]`."""

    def step(self, inputs: StepInputs) -> KVStep:
        """Prepare what all layers of a step share. One step at a time.

        A new owner of a block must not see what the former one left there, be it no number at all: where a
        chunk begins a block, whatever stands behind the chunk's last token may be forgotten.
        """


class Kernels(Protocol):
    """Everything in a decoder layer that is not a matrix product."""

    def kv_bytes_per_block(
        self,
        shapes: Sequence[KVShape],
        block_size: int,
        dtype: torch.dtype,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> int:
        """Bytes that one block takes over all layers."""

    def allocate_kv(
        self,
        shapes: Sequence[KVShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        kind: KVCacheDtype = KVCacheDtype.AUTO,
    ) -> PagedKV:
        """A cache of `num_blocks` blocks of `block_size` tokens, `shapes[i]` describing layer i."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x ** 2) + eps) * weight over the last dimension, in float32, given back in x's dtype.

        `weight` is float32.
        """

    def rms_norm_(self, x: Tensor, weight: Tensor, eps: float) -> None:
        """`rms_norm` in place; `x` may be part of a larger tensor."""

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add `x` to `residual` in place and give `rms_norm(residual, weight, eps)`."""

    def gated_activation(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """[T, 2 n] -> [T, n]: activation of the first half times the second half."""

    def quantise_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, n] -> int8 [T, n] in -127 to 127 and float32 scales [T]; x is about scale * int8 row by row."""
