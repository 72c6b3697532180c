"""Estimate of the memory that one step takes beside weights and cache."""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from ..answers.prompt_scores import MAX_ROWS
from ..worker import WorkerConfig
from .decoder.step_program import KEPT_ROWS
from .encoders.padding import GROUP_TOKENS
from .kernels.interface import KVShape
from .kernels.native_cache import attends_natively, scratch_bytes
from .kernels.native_kernels import NativeKernels, make_kernels
from .kernels.torch_kernels import GROUP_BYTES, MAX_SCORES

_FLOAT = 4


def activation_bytes(
    text: PretrainedConfig,
    shapes: Sequence[KVShape],
    config: WorkerConfig,
    dtype: torch.dtype,
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
    # The head's output, its float32 copy, and the sampler's.
    logits = (config.max_num_seqs + MAX_ROWS) * vocab * (size + 2 * _FLOAT)
    # Beside a step's own memory there is that of kept programs.
    tokens = config.max_num_batched_tokens + KEPT_ROWS
    return tokens * per_token + logits + _attention_bytes(text, shapes, config, dtype)


def encoder_bytes(text: PretrainedConfig, config: WorkerConfig, dtype: torch.dtype) -> int:
    """Upper estimate of what an Encoder's groups take, scores of attention included.

    Hidden states of a group are in memory while they are pooled; those of a whole step never are.
    """
    hidden: int = text.hidden_size
    wide: int = getattr(text, "intermediate_size", None) or 4 * hidden
    tokens = max(config.max_length, min(GROUP_TOKENS, config.max_num_batched_tokens * 8 // 7))
    # Residual stream, a branch's input and its output; the insides of the MLP or of attention.
    per_token = 3 * hidden * dtype.itemsize + 2 * hidden * _FLOAT + 3 * max(wide, 3 * hidden) * dtype.itemsize
    # Scores, their copy in float32 and the mask, where attention is plain; less where it is fused.
    heads: int = text.num_attention_heads
    scores = heads * config.max_length * (dtype.itemsize + 2 * _FLOAT)
    return tokens * (per_token + scores)


def _attention_bytes(
    text: PretrainedConfig, shapes: Sequence[KVShape], config: WorkerConfig, dtype: torch.dtype
) -> int:
    kernels = make_kernels(torch.device(config.device))
    if isinstance(kernels, NativeKernels) and attends_natively(shapes, config.block_size, dtype):
        return scratch_bytes(shapes, text.num_attention_heads, config.threads)
    # Masks of query tiles that do not begin their sequence, and the bools they are made from.
    masks = config.max_num_batched_tokens * config.max_length * (dtype.itemsize + 2)
    per_position = max(2 * s.num_kv_heads * max(s.key_dim, s.value_dim) for s in shapes) * dtype.itemsize
    gathered = max(GROUP_BYTES, config.max_length * per_position)
    softcap = getattr(text, "attn_logit_softcapping", None)
    scores = 3 * _FLOAT * MAX_SCORES if softcap else 0
    return masks + gathered + scores
