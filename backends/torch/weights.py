"""Weights of the native decoder, streamed from safetensors straight into fused parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ModelFormatError
from .checkpoint import FLOAT_TYPES, Checkpoint, TensorHeader, TensorReader
from .config import DecoderConfig

PREFIXES = (
    ("model.", "lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("", "lm_head.weight"),
)
"""What may stand before the names of a text model's tensors, and the name of its head then."""
BUFFER_BYTES = 16 << 20
"""Bytes of a file that are held beside the parameters they go to."""


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """A linear layer: y = x weight^T + bias."""

    weight: Tensor
    """[outputs, inputs]."""
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norm weights are float32, their family's offset added; None where the family has none."""

    qkv: LinearWeights
    """Outputs: all query heads, all key heads, all value heads."""
    output: LinearWeights
    gate_up: LinearWeights
    """Outputs: the gate, then the other half."""
    down: LinearWeights
    before_attention: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor | None
    after_mlp: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: Tensor
    """[vocab, hidden]."""
    head: Tensor
    """[vocab, hidden]; the embedding itself where they are tied."""
    final_norm: Tensor
    layers: list[LayerWeights]


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor of the checkpoint and the rows of a parameter that it fills."""

    name: str
    target: Tensor
    order: Tensor | None = None
    """Row of the target that each row of the checkpoint's tensor goes to; None: the same row."""


class _Builder:
    """Allocates the parameters and notes which tensor fills which part of them."""

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, names: tuple[str, str]
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.prefix, self.head_name = names
        self.parts: list[_Part] = []
        self.norms: list[Tensor] = []

    def build(self) -> DecoderWeights:
        config = self.config
        embedding = self.matrix(f"{self.prefix}embed_tokens.weight", config.vocab_size, config.hidden_size)
        head = embedding
        if not config.tied_head:
            head = self.matrix(self.head_name, config.vocab_size, config.hidden_size)
        layers = [self.layer(f"{self.prefix}layers.{i}.") for i in range(len(config.layers))]
        return DecoderWeights(embedding, head, self.norm(f"{self.prefix}norm", config.hidden_size), layers)

    def layer(self, prefix: str) -> LayerWeights:
        config = self.config
        attention, mlp, names = f"{prefix}self_attn.", f"{prefix}mlp.", config.norms
        hidden, wide = config.hidden_size, config.intermediate_size
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

        def norm(name: str | None) -> Tensor | None:
            return None if name is None else self.norm(prefix + name, hidden)

        return LayerWeights(
            qkv=self.qkv(attention),
            output=self.linear([(attention + "o_proj", hidden)], queries, config.output_bias),
            gate_up=self.linear(
                [(mlp + "gate_up_proj", 2 * wide)]
                if config.fused_gate_up
                else [(mlp + "gate_proj", wide), (mlp + "up_proj", wide)],
                hidden,
                config.mlp_bias,
            ),
            down=self.linear([(mlp + "down_proj", hidden)], wide, config.mlp_bias),
            before_attention=norm(names.before_attention),
            after_attention=norm(names.after_attention),
            before_mlp=norm(names.before_mlp),
            after_mlp=norm(names.after_mlp),
            query_norm=self.qk_norm(attention + "q_norm", queries),
            key_norm=self.qk_norm(attention + "k_norm", keys),
        )

    def qkv(self, prefix: str) -> LinearWeights:
        config = self.config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        if config.fused_qkv:
            return self.linear(
                [(prefix + "qkv_proj", queries + 2 * keys)], config.hidden_size, config.qkv_bias
            )
        orders = [self.rope_order(config.num_heads), self.rope_order(config.num_kv_heads), None]
        parts = [(prefix + "q_proj", queries), (prefix + "k_proj", keys), (prefix + "v_proj", keys)]
        return self.linear(parts, config.hidden_size, config.qkv_bias, orders)

    def rope_order(self, heads: int) -> Tensor | None:
        """Where each row goes so that a rotation of neighbours becomes one of halves.

        Queries and keys are reordered alike, so their products stay the same.
        """
        config = self.config
        if not config.neighbour_rope:
            return None
        width = 2 * len(config.ropes[0].frequencies)
        turned = torch.arange(width).view(2, -1).t().flatten()
        order = torch.cat((turned, torch.arange(width, config.head_dim)))
        return (torch.arange(heads)[:, None] * config.head_dim + order).flatten()

    def qk_norm(self, name: str, width: int) -> Tensor | None:
        if self.config.qk_norm is None:
            return None
        return self.norm(name, self.config.head_dim if self.config.qk_norm == "head" else width)

    def linear(
        self, parts: list[tuple[str, int]], inputs: int, bias: bool, orders: list[Tensor | None] | None = None
    ) -> LinearWeights:
        """A layer whose output rows are those of `parts`, (name, outputs) each, one after the other."""
        outputs = sum(count for _, count in parts)
        weight = torch.empty(outputs, inputs, dtype=self.dtype, device=self.device)
        vector = torch.empty(outputs, dtype=self.dtype, device=self.device) if bias else None
        begin = 0
        for (name, count), order in zip(parts, orders or [None] * len(parts), strict=True):
            self.parts.append(_Part(f"{name}.weight", weight[begin : begin + count], order))
            if vector is not None:
                self.parts.append(_Part(f"{name}.bias", vector[begin : begin + count], order))
            begin += count
        return LinearWeights(weight, vector)

    def matrix(self, name: str, rows: int, columns: int) -> Tensor:
        weight = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        self.parts.append(_Part(name, weight))
        return weight

    def norm(self, name: str, width: int) -> Tensor:
        weight = torch.empty(width, dtype=torch.float32, device=self.device)
        self.parts.append(_Part(f"{name}.weight", weight))
        self.norms.append(weight)
        return weight


def load_weights(
    folder: Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
    buffer_bytes: int = BUFFER_BYTES,
) -> DecoderWeights:
    """Read a checkpoint; beside the parameters only `buffer_bytes` of it are held in memory.

    Args:
        progress: told which share of the weights is read, from 0 to 1.

    Raises:
        ModelFormatError: a file is missing or damaged, or a tensor is missing or does not fit.
    """
    headers = Checkpoint(folder).headers
    names = next((pair for pair in PREFIXES if f"{pair[0]}embed_tokens.weight" in headers), PREFIXES[0])
    builder = _Builder(config, dtype, device, names)
    weights = builder.build()
    by_file: dict[Path, list[_Part]] = {}
    for part in builder.parts:
        by_file.setdefault(_check(part, headers.get(part.name), folder).file, []).append(part)
    total = sum(part.target.numel() for part in builder.parts)
    done = 0
    progress(0.0)
    for file, parts in by_file.items():
        parts.sort(key=lambda part: headers[part.name].begin)
        with file.open("rb") as opened:
            reader = TensorReader(opened, buffer_bytes)
            for part in parts:
                for row, piece in reader.pieces(headers[part.name]):
                    _fill(part, row, piece)
                    done += piece.numel()
                    progress(done / total)
    if config.norm_offset:
        for norm in builder.norms:
            norm += config.norm_offset
    return weights


def parameter_shapes(config: DecoderConfig) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of all tensors a checkpoint of this configuration must have: matrices and biases, then norms."""
    builder = _Builder(config, torch.float32, torch.device("meta"), PREFIXES[0])
    builder.build()
    norms = [tuple(norm.shape) for norm in builder.norms]
    others = [tuple(p.target.shape) for p in builder.parts if not any(p.target is n for n in builder.norms)]
    return others, norms


def count_parameters(config: DecoderConfig) -> int:
    """Number of parameters, a tied head counted once; nothing is read."""
    others, norms = parameter_shapes(config)
    return sum(math.prod(shape) for shape in others + norms)


def weight_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Bytes that `load_weights` fills; nothing is read."""
    others, norms = parameter_shapes(config)
    return sum(math.prod(s) for s in others) * dtype.itemsize + sum(math.prod(s) for s in norms) * 4


def _check(part: _Part, header: TensorHeader | None, folder: Path) -> TensorHeader:
    if header is None:
        raise ModelFormatError(f"tensor {part.name} is missing in {folder}")
    if header.shape != tuple(part.target.shape):
        raise ModelFormatError(
            f"tensor {part.name} in {header.file} has shape {list(header.shape)}; "
            f"the configuration asks for {list(part.target.shape)}"
        )
    if header.dtype not in FLOAT_TYPES:
        raise ModelFormatError(
            f"tensor {part.name} in {header.file} is of type {header.dtype}; "
            f"allowed: {', '.join(sorted(FLOAT_TYPES))}"
        )
    return header


def _fill(part: _Part, row: int, piece: Tensor) -> None:
    """Copy rows of the checkpoint's tensor, the first of them number `row`, to where they belong."""
    target, rows = part.target, slice(row, row + piece.shape[0])
    if part.order is None:
        target[rows].copy_(piece)
    else:
        target[part.order[rows].to(target.device)] = piece.to(target.device, target.dtype)
