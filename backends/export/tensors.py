"""The tensors of a GGUF file, made from those of a checkpoint one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ModelFormatError, NotSupported
from ..torch.decoder.config import DecoderConfig
from ..torch.decoder.weights import BUFFER_BYTES, PREFIXES
from ..torch.files.checkpoint import FLOAT_TYPES, Checkpoint, TensorHeader, TensorReader
from .architectures import Architecture

_TORCH_TYPES = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """Outermost dimension first."""
    kind: Kind
    source: TensorHeader | tuple[float, ...]
    """The checkpoint's tensor, or the values themselves."""
    order: Tensor | None = None
    """Row of this tensor that each row of the checkpoint's goes to; None: the same row."""
    offset: float = 0.0
    """Added to every element."""
    factor: float = 1.0
    """What every element is multiplied with."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its data in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        elements = 1
        for dimension in self.shape:
            elements *= dimension
        return elements // block * size

    def data(self) -> NDArray[np.uint8]:
        """Read, convert and give back its bytes; beside them only a small part of the source is in memory.

        Raises:
            ModelFormatError: the checkpoint's file ends too early.
            NotSupported: a value is too large for the type.
        """
        if isinstance(self.source, tuple):
            return np.asarray(self.source, dtype=np.float32).view(np.uint8)
        rows = np.empty((self.shape[0], self.num_bytes // self.shape[0]), dtype=np.uint8)
        with self.source.file.open("rb") as opened:
            for begin, piece in TensorReader(opened, BUFFER_BYTES).pieces(self.source):
                place: Any = slice(begin, begin + len(piece))
                rows[place if self.order is None else self.order[place].numpy()] = self._encode(piece)
        return rows.reshape(-1)

    def _encode(self, piece: Tensor) -> NDArray[np.uint8]:
        """Bytes of each of some rows, [rows, bytes of one]."""
        if self.offset or self.factor != 1.0:
            piece = piece.float() * self.factor + self.offset
        dtype = _TORCH_TYPES.get(self.kind)
        if dtype is None:
            quantised: NDArray[np.uint8] = gguf.quants.quantize(piece.float().numpy(), self.kind)
            return quantised
        converted = piece.to(dtype)
        if dtype == torch.float16 and not bool(converted.isfinite().all()):
            raise NotSupported(f"tensor {self.name} has values that are too large for f16; export it as bf16")
        encoded: NDArray[np.uint8] = converted.reshape(len(piece), -1).view(torch.uint8).numpy()
        return encoded


class TensorPlan:
    """Which tensors a checkpoint has in a GGUF file; nothing is read to make it but the headers."""

    def __init__(
        self, checkpoint: Checkpoint, config: DecoderConfig, architecture: Architecture, kind: Kind
    ) -> None:
        """Take the names and types of an export; matrices are written as `kind`, the others as F32."""
        self._headers = checkpoint.headers
        self._config = config
        self._architecture = architecture
        self._kind = kind
        self._prefix, self._head = next(
            (pair for pair in PREFIXES if f"{pair[0]}embed_tokens.weight" in checkpoint.headers), PREFIXES[0]
        )

    def tensors(self) -> Iterator[GGUFTensor]:
        """All of them but rotary factors, in the order of the file.

        Raises:
            ModelFormatError: the checkpoint lacks one, or has it in another shape or type.
            NotSupported: rows of one do not fit the blocks of the type.
        """
        config = self._config
        # Four bits are too few for the matrices that hold the words: they would cost most of the quality.
        wide = Kind.Q8_0 if self._kind == Kind.Q4_0 else self._kind
        vocabulary = (config.vocab_size, config.hidden_size)
        embedding = f"{self._prefix}embed_tokens.weight"
        yield self._matrix("token_embd.weight", embedding, vocabulary, kind=wide)
        yield self._vector("output_norm.weight", f"{self._prefix}norm.weight", config.hidden_size, norm=True)
        if not config.tied_head or self._architecture.head == "always":
            head = embedding if config.tied_head else self._head
            yield self._matrix("output.weight", head, vocabulary, kind=wide)
        for index in range(len(config.layers)):
            yield from self._layer(f"blk.{index}.", f"{self._prefix}layers.{index}.")

    def _layer(self, target: str, source: str) -> Iterator[GGUFTensor]:
        config, norms = self._config, self._config.norms
        for name, norm in (
            ("attn_norm", norms.before_attention),
            ("post_attention_norm", norms.after_attention),
            (self._architecture.mlp_norm, norms.before_mlp),
            ("post_ffw_norm", norms.after_mlp),
        ):
            if norm is not None:
                yield self._vector(f"{target}{name}.weight", f"{source}{norm}.weight", norm=True)
        yield from self._attention(target, f"{source}self_attn.")
        hidden, wide = config.hidden_size, config.intermediate_size
        # The fused matrix goes by the name of "up" in the file.
        parts = (
            [("ffn_up", "gate_up_proj", 2 * wide)]
            if config.fused_gate_up
            else [
                ("ffn_gate", "gate_proj", wide),
                ("ffn_up", "up_proj", wide),
            ]
        )
        for name, part, rows in parts:
            yield from self._linear(target + name, f"{source}mlp.{part}", rows, hidden, config.mlp_bias)
        yield from self._linear(f"{target}ffn_down", f"{source}mlp.down_proj", hidden, wide, config.mlp_bias)

    def _attention(self, target: str, source: str) -> Iterator[GGUFTensor]:
        config = self._config
        hidden, head = config.hidden_size, config.head_dim
        queries, keys = config.num_heads * head, config.num_kv_heads * head
        if config.fused_qkv:
            parts = [("attn_qkv", "qkv_proj", queries + 2 * keys, 0)]
        else:
            parts = [
                ("attn_q", "q_proj", queries, config.num_heads),
                ("attn_k", "k_proj", keys, config.num_kv_heads),
                ("attn_v", "v_proj", keys, 0),
            ]
        for name, part, rows, turned_heads in parts:
            order = self._rope_order(turned_heads)
            yield from self._linear(target + name, source + part, rows, hidden, config.qkv_bias, order)
        yield from self._linear(
            f"{target}attn_output", f"{source}o_proj", hidden, queries, config.output_bias
        )
        if config.qk_norm is not None:
            for name, part, width in (("q", "q_norm", queries), ("k", "k_norm", keys)):
                width = head if config.qk_norm == "head" else width
                yield self._vector(
                    f"{target}attn_{name}_norm.weight", f"{source}{part}.weight", width, norm=True
                )

    def _rope_order(self, heads: int) -> Tensor | None:
        """Where each row goes so that a rotation of halves becomes one of neighbours; None: where it is."""
        config = self._config
        if not heads or not self._architecture.neighbour_rope or config.neighbour_rope:
            return None
        half = config.head_dim // 2
        turned = torch.arange(config.head_dim).view(half, 2).t().flatten()
        return (torch.arange(heads)[:, None] * config.head_dim + turned).flatten()

    def _linear(
        self, target: str, source: str, rows: int, columns: int, bias: bool, order: Tensor | None = None
    ) -> Iterator[GGUFTensor]:
        yield self._matrix(f"{target}.weight", f"{source}.weight", (rows, columns), order)
        if bias:
            yield self._vector(f"{target}.bias", f"{source}.bias", rows, order)

    def _matrix(
        self,
        target: str,
        source: str,
        shape: tuple[int, int],
        order: Tensor | None = None,
        kind: Kind | None = None,
    ) -> GGUFTensor:
        kind = self._kind if kind is None else kind
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if shape[1] % block:
            raise NotSupported(
                f"tensor {source} has rows of {shape[1]} elements; {kind.name.lower()} takes multiples of "
                f"{block}: export it as bf16"
            )
        return GGUFTensor(target, shape, kind, self._header(source, shape), order)

    def _vector(
        self,
        target: str,
        source: str,
        size: int | None = None,
        order: Tensor | None = None,
        *,
        norm: bool = False,
    ) -> GGUFTensor:
        shape = (self._config.hidden_size if size is None else size,)
        offset = self._config.norm_offset if norm else 0.0
        return GGUFTensor(target, shape, Kind.F32, self._header(source, shape), order, offset)

    def _header(self, name: str, shape: tuple[int, ...]) -> TensorHeader:
        header = self._headers.get(name)
        if header is None:
            raise ModelFormatError(f"tensor {name} is missing in the checkpoint")
        if header.shape != shape:
            raise ModelFormatError(
                f"tensor {name} in {header.file} has shape {list(header.shape)}; the configuration asks for "
                f"{list(shape)}"
            )
        if header.dtype not in FLOAT_TYPES:
            raise ModelFormatError(
                f"tensor {name} in {header.file} is of type {header.dtype}; "
                f"allowed: {', '.join(sorted(FLOAT_TYPES))}"
            )
        return header
