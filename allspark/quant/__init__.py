"""Settings of quantised models, as DashInfer reads them; no quantisation can be enabled with them here."""

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
