"""The one sampler of all workers: from rows of logits to token ids."""

from .sampler import Sampler, SampleResult

__all__ = ["SampleResult", "Sampler"]
