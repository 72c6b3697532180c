"""Which backends hold keys and values in codes."""

import importlib.util

import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.fake import FakeBackend
from millstream.backends.worker import Backend, WorkerConfig
from millstream.errors import InvalidArgument


def config(kv_cache_dtype: str) -> WorkerConfig:
    return WorkerConfig(
        device="cpu",
        dtype="float32",
        max_length=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=16,
        num_blocks=20,
        threads=1,
        kv_cache_dtype=kv_cache_dtype,
    )


def backends() -> list[tuple[Backend, str]]:
    found: list[tuple[Backend, str]] = [(FakeBackend(), "pyhelp")]
    if importlib.util.find_spec("llama_cpp") is not None:
        from millstream.backends.llamacpp.backend import LlamaCppBackend

        found.append((LlamaCppBackend(), "pyhelp-bf16"))
    return found


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "uint4"])
def test_other_backends_refuse(kv_cache_dtype: str) -> None:
    for backend, model in backends():
        info = backend.inspect(model, BUNDLED_MODELS[model])
        with pytest.raises(InvalidArgument, match=f"kv_cache_dtype is '{kv_cache_dtype}'; allowed: 'auto'"):
            backend.memory_needs(info, config(kv_cache_dtype))


@pytest.mark.torch
def test_blocks_shrink_on_torch() -> None:
    from millstream.backends.torch.backend import TorchBackend

    backend = TorchBackend()
    info = backend.inspect("pyhelp", BUNDLED_MODELS["pyhelp"])
    plain, int8, uint4 = (
        backend.memory_needs(info, config(kind)).kv_per_block for kind in ("auto", "int8", "uint4")
    )
    assert plain > 2 * int8 > 3 * uint4
