"""Checkpoints that the native decoder does not know, run by transformers' own modules on the paged KV cache.

A packed step goes in as one row of T tokens with their positions; attention is answered from the cache.
Whether a model can run like this is decided when it is loaded: by what its class and configuration say, by a
probe of its attention calls, and by comparing two short sequences, computed in pieces, with its own pass.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...errors import InvalidArgument, MillstreamError, ModelFormatError, NotSupported
from ..worker import ModelInfo, Progress, WorkerConfig
from .config import read_config
from .inputs import StepInputs
from .kernels import Kernels, KVCacheDtype, KVShape, PagedKV
from .transformers_attention import PagedLayer, PagedStep, answered_by, probe_layers, register
from .transformers_check import Check
from .transformers_config import REPLACED, causal_class, check_length, kv_shapes, reference_attention
from .transformers_families import replace_attention

_AUTO: Any = AutoModelForCausalLM
_LOGGING: Any = logging
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What transformers raises when a weight file is missing, cut short or of another shape."""


class TransformersModel:
    """A transformers module on a paged cache; a PagedModel."""

    def __init__(self, module: PreTrainedModel, layers: Mapping[nn.Module, PagedLayer], kv: PagedKV) -> None:
        self._module = module
        self._layers = layers
        self._kv = kv

    @torch.inference_mode()
    def forward(self, inputs: StepInputs) -> Tensor:
        """See PagedModel."""
        with answered_by(PagedStep(self._layers, self._kv, inputs)):
            output = self._module(
                input_ids=inputs.token_ids.unsqueeze(0),
                position_ids=inputs.positions.unsqueeze(0),
                logits_to_keep=inputs.logit_rows,
                use_cache=False,
            )
        logits: Tensor = output.logits[0]
        if len(logits) != len(inputs.logit_rows):
            raise NotSupported(f"{type(self._module).__name__} gives logits of rows that nobody asked for")
        return logits.float()


def load(info: ModelInfo, config: WorkerConfig, kernels: Kernels, progress: Progress) -> TransformersModel:
    """Read the weights, attach the paged attention and check it against the model's own forward pass.

    Raises:
        InvalidArgument: `config.dtype` is none that transformers modules compute in, or `config.max_length`
            is more than the model was made for.
        ModelFormatError: a weight file is missing, cut short or does not match the configuration.
        NotSupported: the model cannot run on the paged cache; the message says why.
    """
    if config.dtype not in _DTYPES:
        raise InvalidArgument("dtype", config.dtype, f"{', '.join(_DTYPES)} for {info.architecture}")
    dtype, device = _DTYPES[config.dtype], torch.device(config.device)
    if config.max_length > info.max_length:
        raise InvalidArgument(
            "max_length", config.max_length, f"up to {info.max_length} for {info.architecture}"
        )
    model_config = read_config(info.path)
    name = causal_class(model_config).__name__
    check_length(model_config, config.max_length)
    progress("weights", 0.0)
    module = _read_weights(info, model_config, dtype, device)
    progress("weights", 1.0)
    check = Check.of(info.vocab_size, config.max_length, config.block_size, device)
    with _foreign_code(name), torch.inference_mode():
        expected = module(**check.whole, use_cache=False).logits.flatten(0, 1).float()
        layers = _attach(module, config.max_length)
    shapes = _checked_shapes(layers.values(), model_config, name)

    def on_cache_of(num_blocks: int, kind: KVCacheDtype) -> TransformersModel:
        kv = kernels.allocate_kv(shapes, num_blocks, config.block_size, dtype, device, kind)
        return TransformersModel(module, layers, kv)

    trial = on_cache_of(check.num_blocks, KVCacheDtype.AUTO)
    with _foreign_code(name):
        found = torch.cat([trial.forward(step) for step in check.steps])
    result = check.compare(found, expected, dtype)
    if not result.passed:
        raise NotSupported(
            f"{name} gives other logits on the paged cache than on its own (relative difference "
            f"{result.difference:.2g}, allowed {result.allowed:.2g}), so it is not run"
        )
    progress("check", 1.0)
    return on_cache_of(config.num_blocks, KVCacheDtype(config.kv_cache_dtype))


def _read_weights(
    info: ModelInfo, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The module with its own attention.

    Raises:
        ModelFormatError: as `load`.
    """
    try:
        with _no_progress_bar():
            module, loading = _AUTO.from_pretrained(
                info.path,
                config=config,
                dtype=dtype,
                attn_implementation=reference_attention(config),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        raise NotSupported(f"{info.architecture} needs a package: {_first_line(error)}") from error
    except _UNREADABLE as error:
        raise ModelFormatError(f"the weights in {info.path} cannot be read: {_first_line(error)}") from error
    for what in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name if isinstance(name, str) else name[0]) for name in loading[what])
        if names:
            some = ", ".join(names[:3])
            raise ModelFormatError(
                f"the weights in {info.path} do not fit {type(module).__name__}: "
                f"{len(names)} {what.replace('_', ' ')} ({some})"
            )
    module.config.pad_token_id = -1  # no token is this one, so models that look for padding find none
    model: PreTrainedModel = module.to(device).eval().requires_grad_(False)
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Progress is reported by callback; transformers' own bar is put back to what it was."""
    shown = _LOGGING.is_progress_bar_enabled()
    _LOGGING.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            _LOGGING.enable_progress_bar()


@contextmanager
def _foreign_code(name: str) -> Iterator[None]:
    """Whatever a model's own code raises on plain causal inputs means that it cannot run here."""
    try:
        yield
    except (MillstreamError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise NotSupported(f"{name} does not run on packed sequences: {_first_line(error)}") from error


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
