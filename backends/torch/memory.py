"""Estimate of the memory that one step takes beside weights and cache."""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from ..worker import WorkerConfig
from .kernels import KVShape
from .prompt_scores import MAX_ROWS
from .torch_kernels import GROUP_BYTES, MAX_SCORES

_FLOAT = 4


def activation_bytes(
    text: PretrainedConfig, shapes: Sequence[KVShape], config: WorkerConfig, dtype: torch.dtype
) -> int:
    """Upper estimate of one step's peak, with every limit of `config` reached at once."""
    hidden: int = text.hidden_size
    wide: int = getattr(text, "intermediate_size", None) or 4 * hidden
    heads: int = text.num_attention_heads
    vocab: int = text.vocab_size
    projected = max(heads * s.key_dim + s.num_kv_heads * (s.key_dim + s.value_dim) for s in shapes)
    size = dtype.itemsize
    # Residual stream, a branch's input and its output; then the larger one of the two branches' insides.
    attention = projected * (2 * size + 3 * _FLOAT)
    mlp = 3 * wide * size
    per_token = 3 * hidden * size + 2 * hidden * _FLOAT + max(attention, mlp)
    # Masks of chunks that do not begin their sequence, and the bools they are made from.
    masks = config.max_num_batched_tokens * config.max_length * (size + 2)
    per_position = max(2 * s.num_kv_heads * max(s.key_dim, s.value_dim) for s in shapes) * size
    gathered = max(GROUP_BYTES, config.max_length * per_position)
    softcap = getattr(text, "attn_logit_softcapping", None)
    scores = 3 * _FLOAT * MAX_SCORES if softcap else 0
    # The head's output, its float32 copy, and the sampler's.
    logits = (config.max_num_seqs + MAX_ROWS) * vocab * (size + 2 * _FLOAT)
    return config.max_num_batched_tokens * per_token + masks + gathered + scores + logits
