"""GPTQSettings, where DashInfer keeps it."""

from .quantization_config import GPTQSettings, SignType, SubChannel

__all__ = ["GPTQSettings", "SignType", "SubChannel"]
