"""Reading a transformers module from a folder of safetensors, with every weight in its place."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from ....errors import MillstreamError, ModelFormatError, NotSupported
from ...worker import ModelInfo

_LOGGING: Any = logging
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What transformers raises when a weight file is missing, cut short or of another shape."""


def read_module(
    auto_class: Any,
    info: ModelInfo,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    attention: str | None = None,
    unused: str | None = None,
) -> PreTrainedModel:
    """The module that `auto_class` (one of transformers' AutoModels) makes of the folder `info.path`.

    Args:
        attention: transformers' name of an attention; None takes its own choice.
        unused: first part of the names of weights that may be missing.

    Raises:
        ModelFormatError: a weight file is missing, cut short or does not match the configuration.
        NotSupported: a package is missing.
    """
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with _quiet():
            module, loading = auto_class.from_pretrained(
                info.path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        raise NotSupported(f"{info.architecture} needs a package: {first_line(error)}") from error
    except _UNREADABLE as error:
        raise ModelFormatError(f"the weights in {info.path} cannot be read: {first_line(error)}") from error
    for what in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name if isinstance(name, str) else name[0]) for name in loading[what])
        if unused is not None:
            names = [name for name in names if not name.startswith(unused)]
        if names:
            some = ", ".join(names[:3])
            raise ModelFormatError(
                f"the weights in {info.path} do not fit {type(module).__name__}: "
                f"{len(names)} {what.replace('_', ' ')} ({some})"
            )
    model: PreTrainedModel = module.to(device).eval().requires_grad_(False)
    return model


@contextmanager
def foreign_code(name: str, purpose: str) -> Iterator[None]:
    """Whatever a model's own code raises on plain inputs means that it cannot run here, for `purpose`."""
    try:
        yield
    except (MillstreamError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise NotSupported(f"{name} does not run on {purpose}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress is reported by callback and faults are raised; what transformers shows is put back after."""
    shows_bar, verbosity = _LOGGING.is_progress_bar_enabled(), _LOGGING.get_verbosity()
    _LOGGING.disable_progress_bar()
    _LOGGING.set_verbosity_error()
    try:
        yield
    finally:
        _LOGGING.set_verbosity(verbosity)
        if shows_bar:
            _LOGGING.enable_progress_bar()
