"""Bytes that a model takes in llama.cpp, estimated from its header."""

from typing import Any

from ..gguf.model_file import GGUFModel, Shape
from ..machine.hardware import MemoryLimit
from ..worker import MemoryNeeds, WorkerConfig
from .layout import MIN_OUTPUT_ROWS, CacheCost

MAX_UBATCH = 512
"""Most tokens that llama.cpp computes at once; a longer step is cut into such micro-batches."""
_FLOAT, _HALF = 4, 2


def memory_needs(model: GGUFModel, vocab_size: int, config: WorkerConfig) -> MemoryNeeds:
    """Upper estimates of what loading `model` with this configuration takes, the cache in 16-bit floats."""
    shape = model.shape
    causal = model.is_causal
    return MemoryNeeds(
        weights=model.tensor_bytes,
        activations=_step_bytes(shape, config, causal)
        + _row_bytes(model, vocab_size, config)
        + _state_bytes(shape, config.max_num_seqs),
        kv_per_block=max(1, shape.kv_per_token * _HALF * config.block_size) if model.has_cache else 1,
    )


def cache_cost(model: GGUFModel) -> CacheCost:
    """What its cache costs, and whether it can grow: the states of recurrent layers stay where they are."""
    return CacheCost(
        bytes_per_cell=model.shape.kv_per_token * _HALF if model.has_cache else 0,
        weights=model.tensor_bytes,
        moves=model.shape.recurrent_state == 0,
    )


def gpu_memory(nvml: Any = None) -> MemoryLimit:
    """Memory of all GPUs together, over which llama.cpp spreads a model.

    Args:
        nvml: the module to ask; by default pynvml.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = [nvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    finally:
        nvml.nvmlShutdown()
    total, used = sum(memory.total for memory in found), sum(memory.used for memory in found)
    return MemoryLimit(total, used, f"{len(found)} GPU{'s' if len(found) > 1 else ''}", shared=False)


def _step_bytes(shape: Shape, config: WorkerConfig, causal: bool) -> int:
    """llama.cpp's buffer for the graph of one micro-batch of a step."""
    tokens = config.max_num_batched_tokens
    # A micro-batch of a step; all of it where tokens see those that come after them.
    tokens = min(tokens, MAX_UBATCH) if causal else tokens
    heads, kv_heads = max(shape.heads), max(shape.kv_heads)
    projected = heads * (shape.key_length + shape.value_length) + kv_heads * (
        shape.key_length + shape.value_length
    )
    # The residual stream and a branch's two ends; then the larger one of the two branches' insides.
    per_token = 3 * shape.embedding_length + max(2 * projected, 3 * max(shape.feed_forward))
    # The mask of every token against every position.
    mask = tokens * max(tokens, config.max_length) * _HALF
    return tokens * per_token * _FLOAT + mask


def _row_bytes(model: GGUFModel, vocab_size: int, config: WorkerConfig) -> int:
    """What is given out for tokens: hidden states, and logits, for which there is room in any case."""
    rows = max(config.max_num_seqs, MIN_OUTPUT_ROWS)
    if not model.is_causal:
        rows = max(config.max_num_seqs, config.max_num_batched_tokens)
    # The copy that llama.cpp gives out, the graph's own result where it computes one, two of the sampler's.
    logits = 1 + model.has_cache + 2 * (model.pooling is None)
    return rows * (logits * vocab_size + 2 * model.shape.embedding_length) * _FLOAT


def _state_bytes(shape: Shape, max_num_seqs: int) -> int:
    """What layers without a KV cache keep for each sequence, in 32-bit floats."""
    layers = sum(heads == 0 for heads in shape.kv_heads)
    return layers * shape.recurrent_state * _FLOAT * max_num_seqs
