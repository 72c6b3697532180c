"""Weights of the native decoder, streamed from safetensors into fused parameters, a layer at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ....errors import ModelFormatError
from ...machine.pages import reserve
from ..files.checkpoint import FLOAT_TYPES, Checkpoint, TensorHeader, TensorReader
from .config import DecoderConfig

T = TypeVar("T")
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
class _Part:
    """One tensor of the checkpoint and the rows of a parameter that it fills."""

    name: str
    target: Tensor
    order: Tensor | None = None
    """Row of the target that each row of the checkpoint's tensor goes to; None: the same row."""
    is_norm: bool = False


class _Builder:
    """Allocates parameters and notes in `parts` which tensor fills which part of them."""

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        linear_dtype: torch.dtype,
        device: torch.device,
        names: tuple[str, str],
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.linear_dtype = linear_dtype
        self.device = device
        self.prefix, self.head_name = names
        self.parts: list[_Part] = []

    def embedding(self) -> Tensor:
        return self.matrix(f"{self.prefix}embed_tokens.weight", self.dtype)

    def head(self) -> Tensor:
        return self.matrix(self.head_name, self.linear_dtype)

    def final_norm(self) -> Tensor:
        return self.norm(f"{self.prefix}norm", self.config.hidden_size)

    def layers(self) -> Iterator[LayerWeights]:
        for i in range(len(self.config.layers)):
            yield self.layer(f"{self.prefix}layers.{i}.")

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
        weight = self.empty(outputs, inputs, self.linear_dtype)
        vector = torch.empty(outputs, dtype=self.linear_dtype, device=self.device) if bias else None
        begin = 0
        for (name, count), order in zip(parts, orders or [None] * len(parts), strict=True):
            self.parts.append(_Part(f"{name}.weight", weight[begin : begin + count], order))
            if vector is not None:
                self.parts.append(_Part(f"{name}.bias", vector[begin : begin + count], order))
            begin += count
        return LinearWeights(weight, vector)

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """On a CPU it comes from the system itself, so that it goes back once a layer has its final form."""
        if self.device.type != "cpu":
            return torch.empty(rows, columns, dtype=dtype, device=self.device)
        return reserve(rows * columns * dtype.itemsize).view(dtype).view(rows, columns)

    def matrix(self, name: str, dtype: torch.dtype) -> Tensor:
        config = self.config
        weight = self.empty(config.vocab_size, config.hidden_size, dtype)
        self.parts.append(_Part(name, weight))
        return weight

    def norm(self, name: str, width: int) -> Tensor:
        weight = torch.empty(width, dtype=torch.float32, device=self.device)
        self.parts.append(_Part(f"{name}.weight", weight, is_norm=True))
        return weight


class DecoderWeights:
    """The weights of a decoder, read where and when they are asked for, each of them once.

    What is asked for is new memory that belongs to the caller; beside it only a buffer is held. So a caller
    who brings each layer into another form before taking the next one never holds two copies of the model.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[float], None],
        *,
        keep_float32: bool = False,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Read the headers and compare them with the configuration.

        Args:
            progress: told which share of the weights is read, from 0 to 1.
            keep_float32: linear layers come in float32, unless the files hold no more than bfloat16: for a
                caller who quantises them.

        Raises:
            ModelFormatError: a file is missing or damaged, or a tensor is missing or does not fit.
        """
        self._headers = headers = Checkpoint(folder).headers
        names = next((pair for pair in PREFIXES if f"{pair[0]}embed_tokens.weight" in headers), PREFIXES[0])
        planned = _plan(config, names)
        for part in planned:
            _check(part, headers.get(part.name), folder)
        linear_dtype = dtype
        if keep_float32:
            only_bfloat16 = all(headers[part.name].dtype == "BF16" for part in planned if not part.is_norm)
            linear_dtype = torch.bfloat16 if only_bfloat16 else torch.float32
        self.config = config
        self.dtype = dtype
        self.device = device
        self._builder = _Builder(config, dtype, linear_dtype, device, names)
        self._buffer_bytes = buffer_bytes
        self._progress = progress
        self._total = sum(part.target.numel() for part in planned)
        self._done = 0
        self._opened: tuple[Path, BufferedReader, TensorReader] | None = None
        progress(0.0)

    def embedding(self) -> Tensor:
        """[vocab, hidden]."""
        return self._read(self._builder.embedding)

    def head(self) -> Tensor:
        """[vocab, hidden]; there is none where `config.tied_head` says that it is the embedding.

        Raises:
            ModelFormatError: the file has become shorter since its header was read; so do the others.
        """
        return self._read(self._builder.head)

    def final_norm(self) -> Tensor:
        """[hidden] float32, its family's offset added."""
        return self._read(self._builder.final_norm)

    def layers(self) -> Iterator[LayerWeights]:
        """All layers, from the first to the last."""
        layers = self._builder.layers()
        for _ in self.config.layers:
            yield self._read(lambda: next(layers))

    def _read(self, build: Callable[[], T]) -> T:
        built = build()
        parts, self._builder.parts = self._builder.parts, []
        parts.sort(key=lambda part: (self._headers[part.name].file, self._headers[part.name].begin))
        for part in parts:
            header = self._headers[part.name]
            for row, piece in self._reader(header.file).pieces(header):
                _fill(part, row, piece)
                self._done += piece.numel()
                self._progress(self._done / self._total)
            if part.is_norm and self.config.norm_offset:
                part.target.add_(self.config.norm_offset)
        if self._done == self._total:
            self._close()
        return built

    def _reader(self, file: Path) -> TensorReader:
        """Reader of a file; the last one is kept open."""
        if self._opened is None or self._opened[0] != file:
            self._close()
            opened = file.open("rb")
            self._opened = (file, opened, TensorReader(opened, self._buffer_bytes))
        return self._opened[2]

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None


def _plan(config: DecoderConfig, names: tuple[str, str] = PREFIXES[0]) -> list[_Part]:
    """What all weights are made of; nothing is read or allocated."""
    meta = torch.device("meta")
    builder = _Builder(config, torch.float32, torch.float32, meta, names)
    builder.embedding()
    if config.has_head and not config.tied_head:
        builder.head()
    builder.final_norm()
    list(builder.layers())
    return builder.parts


def layer_shapes(config: DecoderConfig) -> LayerWeights:
    """The first layer, as every other one, in tensors without memory."""
    return next(_Builder(config, torch.float32, torch.float32, torch.device("meta"), PREFIXES[0]).layers())


def count_parameters(config: DecoderConfig) -> int:
    """Number of parameters, a tied head counted once; nothing is read."""
    return sum(part.target.numel() for part in _plan(config))


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
