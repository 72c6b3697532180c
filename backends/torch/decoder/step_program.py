"""StepPrograms: steps as lists of native calls over memory that stays; those of decode steps are kept.

A decode step of few sequences takes a few milliseconds, most of them spent on reading the weights. To make
tensors, ask for their addresses and pass them on would take one or two more, for some two hundred kernels:
the caches then hold weights instead of the interpreter's own data. Nothing of it depends on the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor

from ...machine.pages import reserve
from ...native.linear import NativeLinear
from ..kernels.native_cache import NativeKVStep, NativePagedKV
from ..kernels.native_kernels import NativeKernels
from ..kernels.step_inputs import StepInputs
from .config import DecoderConfig
from .layer import DecoderLayer
from .linear import Linear

KEPT_ROWS = 64
"""Sequences of the largest decode step whose program is kept: with more it would save next to nothing."""
LEAST_COLUMNS = 64
"""Blocks per sequence that a kept program provides for at least."""
_ROWS = 256
"""The memory of other steps grows by so many rows."""

Call = Callable[[], object]
"""A kernel with the addresses that it reads and writes."""


NativeLayer = DecoderLayer[NativeLinear]


def are_native(layers: Sequence[DecoderLayer[Linear]]) -> TypeGuard[Sequence[NativeLayer]]:
    """Whether the native kernels compute all products."""
    products = (product for layer in layers for product in (layer.qkv, layer.output, layer.gated, layer.down))
    return all(isinstance(product, NativeLinear) for product in products)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What the layers of a step with R tokens read and write."""

    x: Tensor
    """[R, hidden], the residual stream."""
    h: Tensor
    """[R, hidden], the input of a branch."""
    delta: Tensor
    """[R, hidden], what a branch adds to the residual stream."""
    qkv: Tensor
    """[R, heads + 2 kv heads, dim]"""
    attended: Tensor
    """[R, heads, dim]"""
    gated: Tensor
    """[R, intermediate]"""
    rotary: tuple[tuple[Tensor, Tensor], ...]
    """Cosines and sines of each rotary embedding, [R, 2 n] float32."""

    @classmethod
    def allocate(cls, config: DecoderConfig, dtype: torch.dtype, rows: int) -> "StepMemory":
        """Memory of unknown content."""
        hidden, heads, dim = config.hidden_size, config.num_heads, config.head_dim

        def floats(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return reserve(rows * prod(shape) * kind.itemsize).view(kind).view(rows, *shape)

        return cls(
            x=floats(hidden),
            h=floats(hidden),
            delta=floats(hidden),
            qkv=floats(heads + 2 * config.num_kv_heads, dim),
            attended=floats(heads, dim),
            gated=floats(config.intermediate_size),
            rotary=tuple(
                (
                    floats(2 * len(rope.frequencies), kind=torch.float32),
                    floats(2 * len(rope.frequencies), kind=torch.float32),
                )
                for rope in config.ropes
            ),
        )

    def first(self, rows: int) -> "StepMemory":
        """The memory of so many of the rows."""
        return StepMemory(
            x=self.x[:rows],
            h=self.h[:rows],
            delta=self.delta[:rows],
            qkv=self.qkv[:rows],
            attended=self.attended[:rows],
            gated=self.gated[:rows],
            rotary=tuple((cos[:rows], sin[:rows]) for cos, sin in self.rotary),
        )


@dataclass(frozen=True, slots=True)
class StepProgram:
    """All layers of a step: from `memory.x` and `memory.rotary` to `out`, the normed hidden states."""

    memory: StepMemory
    step: NativeKVStep
    calls: Sequence[Call]
    out: Tensor

    def run(self, inputs: StepInputs) -> Tensor:
        """Compute the step whose embedded tokens and rotary embeddings the memory holds."""
        self.step.fill(inputs)
        for call in self.calls:
            call()
        return self.out


class StepPrograms:
    """The programs of a decoder's steps; two of them never run at the same time."""

    def __init__(
        self,
        config: DecoderConfig,
        layers: Sequence[NativeLayer],
        final_norm: Tensor,
        kernels: NativeKernels,
        kv: NativePagedKV,
    ) -> None:
        self._config = config
        self._layers = layers
        self._final_norm = final_norm
        self._kernels = kernels
        self._kv = kv
        self._kept: dict[int, StepProgram] = {}
        """By the number of sequences, of decode steps that want the logits of them all."""
        self._kept_memory = StepMemory.allocate(config, kv.dtype, KEPT_ROWS)
        self._memory = StepMemory.allocate(config, kv.dtype, 0)

    def find(self, inputs: StepInputs) -> StepProgram:
        """The program of a step. What it gives lies in memory that the next step uses again."""
        tokens, (chunks, columns) = inputs.query_starts[-1], inputs.block_tables.shape
        if not len(inputs.state_rows) and chunks == tokens == len(inputs.logit_rows) <= KEPT_ROWS:
            return self._keep(chunks, columns)
        if tokens > len(self._memory.x):
            self._memory = StepMemory.allocate(self._config, self._kv.dtype, -(-tokens // _ROWS) * _ROWS)
        step = NativeKVStep(self._kv, chunks, tokens, columns)
        return self._make(step, self._memory.first(tokens), inputs.output_rows)

    def _keep(self, chunks: int, columns: int) -> StepProgram:
        program = self._kept.get(chunks)
        if program is None or program.step.columns < columns:
            # Twice as many: a long sequence has its program made anew a few times in its life.
            step = NativeKVStep(self._kv, chunks, chunks, max(LEAST_COLUMNS, 2 * columns))
            program = self._kept[chunks] = self._make(step, self._kept_memory.first(chunks), None)
        return program

    def _make(self, step: NativeKVStep, memory: StepMemory, rows: Tensor | None) -> StepProgram:
        """`rows`: whose hidden states are wanted; None: those of all."""
        whole = memory
        calls: list[Call] = []
        first, *norms = (layer.before_attention for layer in self._layers)
        h = memory.x if first is None else memory.h
        if first is not None:
            calls.append(self._kernels.norm_call(memory.x, first, self._config.norm_eps, h))
        norms.append(self._final_norm)
        for i, (layer, following) in enumerate(zip(self._layers, norms, strict=True)):
            calls += self._attention(i, layer, memory, step, h)
            if rows is not None and layer is self._layers[-1]:
                if not len(rows):
                    return StepProgram(whole, step, calls, memory.x[:0])
                memory = _select(calls, memory, rows)
            h = self._join(calls, memory, layer.after_attention, layer.before_mlp)
            calls += (layer.gated.call(h, memory.gated), layer.down.call(memory.gated, memory.delta))
            h = self._join(calls, memory, layer.after_mlp, following)
        return StepProgram(whole, step, calls, h)

    def _attention(
        self, i: int, layer: NativeLayer, memory: StepMemory, step: NativeKVStep, h: Tensor
    ) -> Iterator[Call]:
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        qkv = memory.qkv
        query, key = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        yield layer.qkv.call(h, qkv.flatten(1))
        for part, norm in ((query, layer.query_norm), (key, layer.key_norm)):
            if norm is not None:
                whole = part if norm.shape[0] == part.shape[-1] else part.flatten(1)
                yield self._kernels.norm_call(whole, norm, self._config.norm_eps, whole)
        if layer.config.rope is None:
            yield step.write_call(i, key, qkv[:, heads + kv_heads :])
        else:
            yield step.rotate_write_call(i, qkv, *memory.rotary[layer.config.rope])
        yield step.attend_call(i, query, layer.config.attention, memory.attended)
        yield layer.output.call(memory.attended.flatten(1), memory.delta)

    def _join(
        self, calls: list[Call], memory: StepMemory, after: Tensor | None, following: Tensor | None
    ) -> Tensor:
        """Add a branch, normed by `after`, to the residual stream; and where the next one's input is."""
        x, delta, eps = memory.x, memory.delta, self._config.norm_eps
        if after is not None:
            calls.append(self._kernels.norm_call(delta, after, eps, delta))
        if self._config.residual_scale != 1.0:
            calls.append(partial(delta.mul_, self._config.residual_scale))
        if following is None:
            calls.append(partial(x.add_, delta))
            return x
        calls.append(self._kernels.add_norm_call(x, delta, following, eps, memory.h))
        return memory.h


def _select(calls: list[Call], memory: StepMemory, rows: Tensor) -> StepMemory:
    """Go on with some rows of the residual stream and of what is added to it."""
    few = memory.first(len(rows))
    few = replace(few, x=torch.empty_like(few.x), delta=torch.empty_like(few.delta))
    calls.append(partial(torch.index_select, memory.x, 0, rows, out=few.x))
    calls.append(partial(torch.index_select, memory.delta, 0, rows, out=few.delta))
    return few
