"""NativeDecoder: one dense decoder for all families of the table, over packed ragged batches."""

import torch
from torch import Tensor

from ....errors import WorkerError
from ..kernels.interface import Kernels, KVStep, PagedKV
from ..kernels.native_cache import NativePagedKV
from ..kernels.native_kernels import NativeKernels
from ..kernels.step_inputs import StepInputs
from ..model import StepOutputs
from .config import DecoderConfig
from .layer import DecoderLayer, make_layer
from .linear import HEAD_BITS, Head, Linear, LinearMaker, is_packed, linear_bytes
from .quantisation import BITS
from .rope import RotaryTable
from .step_program import StepProgram, StepPrograms, are_native
from .weights import DecoderWeights, layer_shapes


class NativeDecoder:
    """A PagedModel made of plain tensors and a kernel library."""

    def __init__(
        self,
        weights: DecoderWeights,
        kernels: Kernels,
        kv: PagedKV,
        quantization: str = "none",
    ) -> None:
        """Take the layers from `weights`, one by one, so that never two copies of the model exist."""
        config = weights.config
        maker = LinearMaker(weights.dtype, weights.device, quantization, kernels)
        self._config = config
        self._kernels = kernels
        self._kv = kv
        self._embedding = weights.embedding()
        # The references multiply by a scalar of the model's own type.
        self._embedding_scale = float(torch.tensor(config.embedding_scale).to(weights.dtype))
        self._ropes = [RotaryTable(rope, weights.device) for rope in config.ropes]
        self._head: Head | None = None
        if config.has_head:
            self._head = maker.head(self._embedding if config.tied_head else weights.head())
        self._layers = [
            make_layer(layer, layer_weights, maker, config.activation)
            for layer, layer_weights in zip(config.layers, weights.layers(), strict=True)
        ]
        self._final_norm = weights.final_norm()
        self._programs = self._make_programs()

    def _make_programs(self) -> StepPrograms | None:
        """None where a part of a step is not native."""
        kernels, kv, layers = self._kernels, self._kv, self._layers
        if isinstance(kernels, NativeKernels) and isinstance(kv, NativePagedKV) and are_native(layers):
            return StepPrograms(self._config, layers, self._final_norm, kernels, kv)
        return None

    @property
    def has_native_products(self) -> bool:
        """Whether the native kernels compute all products, so that no result depends on the threads."""
        return self._programs is not None and (self._head is None or self._head.is_native)

    @property
    def hidden_size(self) -> int:
        """Numbers in a hidden state."""
        return self._config.hidden_size

    @torch.inference_mode()
    def forward(self, inputs: StepInputs) -> StepOutputs:
        """See `PagedModel`."""
        if self._programs is None:
            return self._compute(inputs)
        return self._run(self._programs.find(inputs), inputs)

    def _compute(self, inputs: StepInputs) -> StepOutputs:
        """A step, layer by layer, on any kernels."""
        rows = inputs.output_rows
        x = self._embed(inputs)
        step = self._kv.step(inputs)
        rotary = [rope.at(inputs.positions) for rope in self._ropes]
        last = len(self._layers) - 1
        h = self._norm(x, self._layers[0].before_attention)
        for i, layer in enumerate(self._layers):
            turn = None if layer.config.rope is None else rotary[layer.config.rope]
            delta = self._branch(self._attention(h, i, layer, step, turn), layer.after_attention)
            if i == last:
                if not len(rows):
                    return StepOutputs(self._no_logits(), x[:0])
                x, delta = x[rows], delta[rows]
            h = self._join(x, delta, layer.before_mlp)
            delta = self._branch(self._mlp(h, layer), layer.after_mlp)
            h = self._join(x, delta, self._final_norm if i == last else self._layers[i + 1].before_attention)
        return self._outputs(h, inputs)

    def _run(self, program: StepProgram, inputs: StepInputs) -> StepOutputs:
        """The same on native ones."""
        self._embed(inputs, program.memory.x)
        for rope, (cos, sin) in zip(self._ropes, program.memory.rotary, strict=True):
            rope.write(inputs.positions, cos, sin)
        return self._outputs(program.run(inputs), inputs)

    def _outputs(self, h: Tensor, inputs: StepInputs) -> StepOutputs:
        """`h`: hidden states of `output_rows`, normed."""
        num_logits = len(inputs.logit_rows)
        logits = self._logits(h[:num_logits]) if num_logits else self._no_logits()
        return StepOutputs(logits, h[num_logits:])

    def _embed(self, inputs: StepInputs, into: Tensor | None = None) -> Tensor:
        x = torch.index_select(self._embedding, 0, inputs.token_ids, out=into)
        if self._embedding_scale != 1.0:
            x *= self._embedding_scale
        return x

    def _no_logits(self) -> Tensor:
        return torch.empty(0, self._config.vocab_size, device=self._embedding.device)

    def _norm(self, x: Tensor, norm: Tensor | None) -> Tensor:
        return x if norm is None else self._kernels.rms_norm(x, norm, self._config.norm_eps)

    def _branch(self, delta: Tensor, norm: Tensor | None) -> Tensor:
        """What a branch adds to the residual stream."""
        delta = self._norm(delta, norm)
        return delta if self._config.residual_scale == 1.0 else delta * self._config.residual_scale

    def _join(self, x: Tensor, delta: Tensor, norm: Tensor | None) -> Tensor:
        """Add to the residual stream `x` in place, and give the next branch's input."""
        if norm is None:
            return x.add_(delta)
        return self._kernels.add_rms_norm(x, delta, norm, self._config.norm_eps)

    def _attention(
        self, h: Tensor, i: int, layer: DecoderLayer[Linear], step: KVStep, turn: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        config = self._config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = layer.qkv(h).view(-1, heads + 2 * kv_heads, config.head_dim)
        query, key = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
        if layer.query_norm is not None and layer.key_norm is not None:
            self._normalise(query, layer.query_norm)
            self._normalise(key, layer.key_norm)
        if turn is None:
            step.write(i, key, qkv[:, heads + kv_heads :])
        else:
            step.rotate_write(i, qkv, *turn)
        return layer.output(step.attend(i, query, layer.config.attention).flatten(1))

    def _normalise(self, part: Tensor, norm: Tensor) -> None:
        """Normalise queries or keys in place, per head or over all heads, as the norm's width says."""
        whole = part if norm.shape[0] == part.shape[-1] else part.flatten(1)
        self._kernels.rms_norm_(whole, norm, self._config.norm_eps)

    def _mlp(self, h: Tensor, layer: DecoderLayer[Linear]) -> Tensor:
        return layer.down(layer.gated(h))

    def _logits(self, h: Tensor) -> Tensor:
        if self._head is None:
            raise WorkerError("a model without a head was asked for a token")
        logits = self._head(h)
        if self._config.logit_scale != 1.0:
            logits *= self._config.logit_scale
        if self._config.logit_softcap is not None:
            logits = logits.div_(self._config.logit_softcap).tanh_().mul_(self._config.logit_softcap)
        return logits


def weight_bytes(config: DecoderConfig, dtype: torch.dtype, device: torch.device, quantization: str) -> int:
    """Bytes that a NativeDecoder's weights take; nothing is read."""
    bits = BITS[quantization]
    layer = layer_shapes(config)
    norms = (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp)
    floats = sum(norm.numel() for norm in (*norms, layer.query_norm, layer.key_norm) if norm is not None)
    one = 4 * floats
    for weights in (layer.qkv, layer.output, layer.gate_up, layer.down):
        rows, inputs = weights.weight.shape
        one += linear_bytes(
            rows,
            inputs,
            bias=weights.bias is not None,
            gated=weights is layer.gate_up,
            dtype=dtype,
            device=device,
            bits=bits,
        )
    vocab, hidden = config.vocab_size, config.hidden_size
    whole = one * len(config.layers) + 4 * hidden + vocab * hidden * dtype.itemsize
    if config.has_head and (not config.tied_head or bits is not None or is_packed(dtype, device)):
        whole += linear_bytes(
            vocab,
            hidden,
            bias=False,
            gated=False,
            dtype=dtype,
            device=device,
            bits=None if bits is None else HEAD_BITS,
        )
    return whole
