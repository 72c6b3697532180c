"""The torch worker: Hugging Face checkpoints on the paged KV cache, natively or through transformers."""

from ..machine.openmp import import_with_openmp
from .versions import check_transformers

check_transformers()
import_with_openmp("torch")
