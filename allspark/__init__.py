"""DashInfer's Python interface over Millstream's engine: its programs run after changing their import."""

from ._allspark import (
    AsCacheMode,
    AsEngine,
    AsEngineStat,
    AsEvictionStrategy,
    AsFileInfo,
    AsMHAPrefill,
    AsModelConfig,
    AsSchedulingStrategy,
    AsStatus,
    GeneratedElements,
    GenerateRequestStatus,
    MultiMediaInfo,
    RequestInferType,
    RequestMMType,
    ResultQueue,
    VocabType,
    save_allsparky_dltensor_tofile,
    set_global_header,
)
from .client import ClientEngine
from .engine import Engine, RequestStatInfo
from .enums import RoPEScaleMethod, TargetDevice
from .generation_config import ASGenerationConfigBuilder, GenerationConfigAdapter
from .model_loader import (
    LLM,
    ConfigFieldMissingError,
    DashInferModel,
    HuggingFaceModel,
    LoadFormat,
    ModelSerializerException,
)
from .prompt_utils import PromptTemplate
from .quant import GPTQSettings, IQSettings, QuantizationSettings, get_quant_settings_cls
from .runtime_config import AsModelRuntimeConfigBuilder

__all__ = [
    "LLM",
    "ASGenerationConfigBuilder",
    "AsCacheMode",
    "AsEngine",
    "AsEngineStat",
    "AsEvictionStrategy",
    "AsFileInfo",
    "AsMHAPrefill",
    "AsModelConfig",
    "AsModelRuntimeConfigBuilder",
    "AsSchedulingStrategy",
    "AsStatus",
    "ClientEngine",
    "ConfigFieldMissingError",
    "DashInferModel",
    "Engine",
    "GPTQSettings",
    "GenerateRequestStatus",
    "GeneratedElements",
    "GenerationConfigAdapter",
    "HuggingFaceModel",
    "IQSettings",
    "LoadFormat",
    "ModelSerializerException",
    "MultiMediaInfo",
    "PromptTemplate",
    "QuantizationSettings",
    "RequestInferType",
    "RequestMMType",
    "RequestStatInfo",
    "ResultQueue",
    "RoPEScaleMethod",
    "TargetDevice",
    "VocabType",
    "get_quant_settings_cls",
    "save_allsparky_dltensor_tofile",
    "set_global_header",
]
