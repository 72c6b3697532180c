"""Settings of quantised weights, as DashInfer reads them, and what the engine makes of them."""

from .quantization_config import (
    GPTQSettings,
    IQSettings,
    QuantComputeMode,
    QuantizationSettings,
    SignType,
    SubChannel,
    get_quant_settings_cls,
)

__all__ = [
    "GPTQSettings",
    "IQSettings",
    "QuantComputeMode",
    "QuantizationSettings",
    "SignType",
    "SubChannel",
    "get_quant_settings_cls",
]
