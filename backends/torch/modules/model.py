"""Checkpoints that the native decoder does not know, run by transformers' own modules on the paged KV cache.

A packed step goes in as one row of T tokens with their positions; attention is answered from the cache.
Whether a model can run like this is decided when it is loaded: by what its class and configuration say, by a
probe of its attention calls, and by comparing two short sequences, computed in chunks, with its own pass.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ....errors import InvalidArgument, NotSupported
from ...worker import ModelInfo, Progress, WorkerConfig
from ..decoder.config import DTYPES, read_config
from ..kernels.interface import Kernels, KVCacheDtype, KVShape, PagedKV
from ..kernels.step_inputs import StepInputs
from ..model import StepOutputs
from .attention import PagedLayer, PagedStep, answered_by, probe_layers, register
from .check import Check
from .config import REPLACED, causal_class, check_length, kv_shapes, reference_attention
from .families import replace_attention
from .weights import foreign_code, read_module

_PURPOSE = "packed sequences"


class TransformersModel:
    """A transformers module on a paged cache; a PagedModel."""

    def __init__(
        self,
        module: PreTrainedModel,
        layers: Mapping[nn.Module, PagedLayer],
        kv: PagedKV,
        hidden_size: int | None = None,
    ) -> None:
        self._module = module
        self._hidden_size = hidden_size
        self._layers = layers
        self._kv = kv

    @property
    def hidden_size(self) -> int | None:
        """Numbers in a hidden state; None where the module has no body apart from its head."""
        return self._hidden_size

    @torch.inference_mode()
    def forward(self, inputs: StepInputs) -> StepOutputs:
        """See PagedModel."""
        body = BodyStates()
        wanted = body.of(self._module) if len(inputs.state_rows) else nullcontext()
        with answered_by(PagedStep(self._layers, self._kv, inputs)), wanted:
            output = self._module(
                input_ids=inputs.token_ids.unsqueeze(0),
                position_ids=inputs.positions.unsqueeze(0),
                logits_to_keep=inputs.logit_rows,
                use_cache=False,
            )
        logits: Tensor = output.logits[0]
        if len(logits) != len(inputs.logit_rows):
            raise NotSupported(f"{type(self._module).__name__} gives logits of rows that nobody asked for")
        states = body.states[0, inputs.state_rows] if body.states is not None else logits[:0]
        return StepOutputs(logits.float(), states)


class BodyStates:
    """Catches what a module's body, which is all of it but the head, gives in the pass that runs."""

    def __init__(self) -> None:
        self.states: Tensor | None = None
        """[B, T, hidden], once the body has run."""

    @contextmanager
    def of(self, module: PreTrainedModel) -> Iterator[None]:
        """The passes of `module` inside the block; of one without a body, nothing is caught."""
        if module.base_model is module:
            yield
            return
        with module.base_model.register_forward_hook(self._catch):
            yield

    def _catch(self, body: nn.Module, arguments: object, output: Any) -> None:
        self.states = output[0]


def load(info: ModelInfo, config: WorkerConfig, kernels: Kernels, progress: Progress) -> TransformersModel:
    """Read the weights, attach the paged attention and check it against the model's own forward pass.

    Raises:
        InvalidArgument: `config.dtype` is none that transformers modules compute in, or `config.max_length`
            is more than the model was made for.
        ModelFormatError: a weight file is missing, cut short or does not match the configuration.
        NotSupported: the model cannot run on the paged cache; the message says why.
    """
    if config.dtype not in DTYPES:
        raise InvalidArgument("dtype", config.dtype, f"{', '.join(DTYPES)} for {info.architecture}")
    dtype, device = DTYPES[config.dtype], torch.device(config.device)
    if config.max_length > info.max_length:
        raise InvalidArgument(
            "max_length", config.max_length, f"up to {info.max_length} for {info.architecture}"
        )
    model_config = read_config(info.path)
    name = causal_class(model_config).__name__
    check_length(model_config, config.max_length)
    progress("weights", 0.0)
    module = read_module(
        AutoModelForCausalLM, info, model_config, dtype, device, attention=reference_attention(model_config)
    )
    module.config.pad_token_id = -1  # no token is this one, so models that look for padding find none
    progress("weights", 1.0)
    check = Check.of(info.vocab_size, config.max_length, config.block_size, device)
    body = BodyStates()
    with foreign_code(name, _PURPOSE), torch.inference_mode(), body.of(module):
        expected = module(**check.whole, use_cache=False).logits.flatten(0, 1).float()
        layers = _attach(module, config.max_length)
    hidden_size = None if body.states is None else body.states.shape[-1]
    shapes = _checked_shapes(layers.values(), model_config, name)

    def on_cache_of(num_blocks: int, kind: KVCacheDtype) -> TransformersModel:
        kv = kernels.allocate_kv(shapes, num_blocks, config.block_size, dtype, device, kind)
        return TransformersModel(module, layers, kv, hidden_size)

    trial = on_cache_of(check.num_blocks, KVCacheDtype.AUTO)
    with foreign_code(name, _PURPOSE):
        found = torch.cat([trial.forward(step).logits for step in check.steps])
    result = check.compare(found, expected, dtype)
    if not result.passed:
        raise NotSupported(
            f"{name} gives other logits on the paged cache than on its own (relative difference "
            f"{result.difference:.2g}, allowed {result.allowed:.2g}), so it is not run"
        )
    progress("check", 1.0)
    return on_cache_of(config.num_blocks, KVCacheDtype(config.kv_cache_dtype))


def _attach(module: PreTrainedModel, max_length: int) -> Mapping[nn.Module, PagedLayer]:
    """Turn the attention of `module` to the paged cache: every attention module with its layer, in order.

    Raises:
        NotSupported: as `load`.
    """
    if module.config.model_type in REPLACED:
        return replace_attention(module)
    register()
    return probe_layers(module, max_length)


def _checked_shapes(layers: Iterable[PagedLayer], config: PretrainedConfig, name: str) -> list[KVShape]:
    """Shapes of the cache, once they are those that the memory plan was made with."""
    shapes, planned = [layer.shape for layer in layers], kv_shapes(config)
    if len(shapes) != len(planned):
        raise NotSupported(
            f"{name} has {len(planned)} layers and attends {len(shapes)} times; allowed: once in each layer"
        )
    for index, (shape, plan) in enumerate(zip(shapes, planned, strict=True)):
        if shape != plan:
            raise NotSupported(f"{name} has {shape} in layer {index} where its configuration says {plan}")
    return shapes
