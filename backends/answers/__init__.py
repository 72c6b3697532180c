"""Rows of logits and hidden states to token ids, scores and vectors, for all workers: sampler, pooling."""

from typing import TYPE_CHECKING, Any

from ..machine.openmp import import_with_openmp

if TYPE_CHECKING:
    from .sampler import Sampler, SampleResult

__all__ = ["SampleResult", "Sampler"]


def __getattr__(name: str) -> Any:
    """Load the sampler, and torch with it, on first use: what pools without tensors needs neither."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_with_openmp("torch")
    from . import sampler

    return getattr(sampler, name)
