"""DecodePrograms: decode steps as lists of native calls, made once and run for every token.

A step of few sequences takes a few milliseconds, most of them spent on reading the weights. Making tensors,
asking for their addresses and passing them on, for some two hundred kernels, takes a millisecond or two more:
the caches then hold weights instead of the interpreter's own data. Nothing of it depends on the tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..native.linear import NativeLinear
from .config import DecoderConfig
from .decoder_layer import DecoderLayer
from .inputs import StepInputs
from .native_cache import NativeKVStep, NativePagedKV
from .native_kernels import NativeKernels

MOST_ROWS = 64
"""Sequences of the largest step that has a program: with more of them it would save next to nothing."""
LEAST_COLUMNS = 64
"""Blocks per sequence that a program provides for at least."""

Call = Callable[[], object]
"""A kernel with the addresses that it reads and writes."""


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """A DecoderLayer whose products are all native."""

    layer: DecoderLayer
    qkv: NativeLinear
    output: NativeLinear
    gated: NativeLinear
    down: NativeLinear


def native_layers(layers: Sequence[DecoderLayer]) -> list[NativeLayer] | None:
    """The layers, or None where a product is computed otherwise."""
    found = []
    for layer in layers:
        qkv, output, gated, down = layer.qkv, layer.output, layer.gated, layer.down
        if not (isinstance(qkv, NativeLinear) and isinstance(output, NativeLinear)):
            return None
        if not (isinstance(gated, NativeLinear) and isinstance(down, NativeLinear)):
            return None
        found.append(NativeLayer(layer, qkv, output, gated, down))
    return found


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
        return cls(
            x=torch.empty(rows, hidden, dtype=dtype),
            h=torch.empty(rows, hidden, dtype=dtype),
            delta=torch.empty(rows, hidden, dtype=dtype),
            qkv=torch.empty(rows, heads + 2 * config.num_kv_heads, dim, dtype=dtype),
            attended=torch.empty(rows, heads, dim, dtype=dtype),
            gated=torch.empty(rows, config.intermediate_size, dtype=dtype),
            rotary=tuple(
                (torch.empty(rows, 2 * len(rope.frequencies)), torch.empty(rows, 2 * len(rope.frequencies)))
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
class DecodeProgram:
    """All layers of a step: from `memory.x` and `memory.rotary` to `out`, the normed hidden states."""

    memory: StepMemory
    step: NativeKVStep
    calls: tuple[Call, ...]
    out: Tensor

    def run(self, inputs: StepInputs) -> Tensor:
        """Compute the step whose embedded tokens and rotary embeddings the memory holds."""
        self.step.fill(inputs)
        for call in self.calls:
            call()
        return self.out


class DecodePrograms:
    """The programs of a decoder, one per number of sequences, all in the same memory."""

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
        self._memory = StepMemory.allocate(config, kv.dtype, MOST_ROWS)
        self._programs: dict[int, DecodeProgram] = {}

    def find(self, inputs: StepInputs) -> DecodeProgram | None:
        """The program for a step of few sequences that have a token each and want its logits; else None."""
        rows = len(inputs.context_lengths)
        if rows > MOST_ROWS or inputs.query_starts[-1] != rows or len(inputs.logit_rows) != rows:
            return None
        if len(inputs.state_rows):
            return None
        columns = inputs.block_tables.shape[1]
        program = self._programs.get(rows)
        if program is None or program.step.columns < columns:
            # Twice as many: a long sequence has its program made anew a few times in its life.
            program = self._programs[rows] = self._make(rows, max(LEAST_COLUMNS, 2 * columns))
        return program

    def _make(self, rows: int, columns: int) -> DecodeProgram:
        memory = self._memory.first(rows)
        step = NativeKVStep(self._kv, rows, rows, columns)
        calls: list[Call] = []
        norms = [native.layer.before_attention for native in self._layers]
        h = memory.x if norms[0] is None else memory.h
        if norms[0] is not None:
            calls.append(self._kernels.norm_call(memory.x, norms[0], self._config.norm_eps, h))
        for i, (native, following) in enumerate(
            zip(self._layers, [*norms[1:], self._final_norm], strict=True)
        ):
            calls += self._attention(i, native, memory, step, h)
            h = self._join(calls, memory, native.layer.after_attention, native.layer.before_mlp)
            calls += (native.gated.call(h, memory.gated), native.down.call(memory.gated, memory.delta))
            h = self._join(calls, memory, native.layer.after_mlp, following)
        return DecodeProgram(memory, step, tuple(calls), h)

    def _attention(
        self, i: int, native: NativeLayer, memory: StepMemory, step: NativeKVStep, h: Tensor
    ) -> Iterator[Call]:
        layer, heads, kv_heads = native.layer, self._config.num_heads, self._config.num_kv_heads
        qkv = memory.qkv
        query, key = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        yield native.qkv.call(h, qkv.flatten(1))
        for part, norm in ((query, layer.query_norm), (key, layer.key_norm)):
            if norm is not None:
                whole = part if norm.shape[0] == part.shape[-1] else part.flatten(1)
                yield self._kernels.norm_call(whole, norm, self._config.norm_eps, whole)
        if layer.config.rope is None:
            yield step.write_call(i, key, qkv[:, heads + kv_heads :])
        else:
            yield step.rotate_write_call(i, qkv, *memory.rotary[layer.config.rope])
        yield step.attend_call(i, query, layer.config.attention, memory.attended)
        yield native.output.call(memory.attended.flatten(1), memory.delta)

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
