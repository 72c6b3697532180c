"""Millstream: an asyncio continuous-batching engine for large language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import allspark, errors
    from .engine import AsyncEngine, Engine, ModelConfig
    from .scheduler import SamplingParams

_HOMES = {
    "AsyncEngine": ".engine",
    "Engine": ".engine",
    "ModelConfig": ".engine",
    "SamplingParams": ".scheduler",
}
_MODULES = ("allspark", "errors")

__all__ = ["AsyncEngine", "Engine", "ModelConfig", "SamplingParams", "__version__", "allspark", "errors"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that `import millstream` stays instant."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
