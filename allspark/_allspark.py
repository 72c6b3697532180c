"""The names of DashInfer's native module, where programs import them from."""

import os
from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import NotSupported
from .enums import (
    AsCacheMode,
    AsEvictionStrategy,
    AsMHAPrefill,
    AsSchedulingStrategy,
    AsStatus,
    RequestInferType,
    RequestMMType,
    VocabType,
)
from .model_config import AsModelConfig
from .multimedia import MultiMediaInfo
from .native import AsEngine
from .result_queue import GeneratedElements, GenerateRequestStatus, ResultQueue
from .statistics import AsEngineStat, AsFileInfo

__all__ = [
    "AsCacheMode",
    "AsEngine",
    "AsEngineStat",
    "AsEvictionStrategy",
    "AsFileInfo",
    "AsMHAPrefill",
    "AsModelConfig",
    "AsSchedulingStrategy",
    "AsStatus",
    "GenerateRequestStatus",
    "GeneratedElements",
    "MultiMediaInfo",
    "RequestInferType",
    "RequestMMType",
    "ResultQueue",
    "VocabType",
    "save_allsparky_dltensor_tofile",
    "set_global_header",
]


def save_allsparky_dltensor_tofile(
    weights_path: str | os.PathLike[str], name: str, data: object, attributes: Mapping[str, Any]
) -> NoReturn:
    """Raises NotSupported: DashInfer's binary weight files are not written."""
    raise NotSupported(f"{weights_path}: DashInfer's binary weight files are not written ({name})")


def set_global_header(weights_path: str | os.PathLike[str]) -> NoReturn:
    """Raises NotSupported: DashInfer's binary weight files are not written."""
    raise NotSupported(f"{weights_path}: DashInfer's binary weight files are not written")
