"""IQSettings, where DashInfer keeps it."""

from .quantization_config import IQSettings, SignType, SubChannel

__all__ = ["IQSettings", "SignType", "SubChannel"]
