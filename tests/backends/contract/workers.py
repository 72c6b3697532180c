"""The workers that the contract holds for, small and all of one vocabulary."""

import importlib.util
import json
from collections.abc import Callable
from functools import cache

import pytest

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.backends.fake import FakeBackend
from millstream.backends.machine.cpu_level import usable_features
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.backends.worker import Backend, Worker, WorkerConfig

MAX_LENGTH = 256
ROOMY, TIGHT = 400, 150
"""Blocks with which every sequence could have its full length, and with which they could not."""


def load(
    backend: Backend,
    model: str,
    dtype: str,
    num_blocks: int,
    block_size: int = 4,
    kv_cache_dtype: str = "auto",
) -> Worker:
    info = backend.inspect(model, BUNDLED_MODELS[model])
    device, dtype, _ = backend.resolve(info, device="cpu", dtype=dtype, threads=1)
    config = WorkerConfig(
        device=device,
        dtype=dtype,
        max_length=MAX_LENGTH,
        max_num_seqs=6,
        max_num_batched_tokens=192,
        block_size=block_size,
        kv_cache_dtype=kv_cache_dtype,
        num_blocks=num_blocks,
        threads=1,
    )
    return backend.load(info, config, lambda what, share: None)


def fake() -> Worker:
    return load(FakeBackend(vocab_size=4096), "pyhelp", "auto", ROOMY)


def native() -> Worker:
    from millstream.backends.torch.backend import TorchBackend

    return load(TorchBackend(), "pyhelp", "float32", ROOMY)


def native_kernels_float32() -> Worker:
    from millstream.backends.torch.backend import TorchBackend

    return load(TorchBackend(), "pyhelp", "float32", ROOMY, block_size=16)


def native_kernels_bfloat16() -> Worker:
    from millstream.backends.torch.backend import TorchBackend

    return load(TorchBackend(), "pyhelp", "bfloat16", ROOMY, block_size=16)


def native_kernels_int8_cache() -> Worker:
    from millstream.backends.torch.backend import TorchBackend

    return load(TorchBackend(), "pyhelp", "bfloat16", ROOMY, block_size=16, kv_cache_dtype="int8")


def llamacpp_streams() -> Worker:
    from millstream.backends.llamacpp.backend import LlamaCppBackend

    return load(LlamaCppBackend(), "pyhelp-bf16", "auto", ROOMY)


def llamacpp_unified() -> Worker:
    from millstream.backends.llamacpp.backend import LlamaCppBackend

    return load(LlamaCppBackend(), "pyhelp-bf16", "auto", TIGHT)


NEEDS_LLAMACPP = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
SAME_ROWS_IN_BFLOAT16 = pytest.mark.skipif(
    "amx_bf16" in usable_features(), reason="oneDNN's tiles do not give a row the same in every batch"
)
FACTORIES: list[Callable[[], Worker]] = [
    fake,
    native,
    native_kernels_float32,
    pytest.param(native_kernels_bfloat16, marks=SAME_ROWS_IN_BFLOAT16),
    pytest.param(native_kernels_int8_cache, marks=SAME_ROWS_IN_BFLOAT16),
    pytest.param(llamacpp_streams, marks=NEEDS_LLAMACPP),
    pytest.param(llamacpp_unified, marks=NEEDS_LLAMACPP),
]


@cache
def prompts() -> list[list[int]]:
    """Conversations about the standard library, of 20 to 150 tokens, with what comes before an answer."""
    tokenizer = HFTokenizer.from_folder(PYHELP, ())
    with (PYHELP / "facts.jsonl").open() as file:
        facts = [fact for fact in map(json.loads, file) if fact["kind"] == "what"]
    found = []
    for i in range(12):
        messages = []
        for fact in facts[100 * i : 100 * i + i % 4]:
            messages.append({"role": "user", "content": f"What does {fact['name']} do?"})
            messages.append({"role": "assistant", "content": fact["answer"]})
        messages.append({"role": "user", "content": f"What does {facts[100 * i + 50]['name']} do?"})
        found.append(tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False))
    return found
