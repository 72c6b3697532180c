"""The one sampler of all workers: from rows of logits to token ids."""

from ..machine.openmp import import_with_openmp

import_with_openmp("torch")

from .sampler import Sampler, SampleResult  # noqa: E402  (torch comes first)

__all__ = ["SampleResult", "Sampler"]
