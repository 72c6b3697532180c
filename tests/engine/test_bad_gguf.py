"""GGUF files that cannot run: one clear sentence each, while the engine goes on serving another model."""

import shutil

import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, FinishReason, ModelConfig, SamplingParams
from millstream.errors import InsufficientMemory, InvalidArgument, ModelFormatError, ModelNotFound

pytest.importorskip("llama_cpp")

PYHELP = BUNDLED_MODELS["pyhelp-bf16"]
WHOLE = PYHELP.read_bytes()


def replaced(old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


def damages() -> dict[str, tuple[bytes, str]]:
    """What is done to the file -> its bytes, and what the sentence says."""
    first_tensor = WHOLE.index(b"token_embd.weight")
    type_at = first_tensor + len(b"token_embd.weight") + 4 + 2 * 8
    return {
        "truncated data": (WHOLE[: len(WHOLE) // 2], "is truncated"),
        "last byte missing": (WHOLE[:-64], "is truncated"),
        "truncated header": (WHOLE[:5000], "truncated or damaged"),
        "only a magic": (b"GGUF", "truncated or damaged"),
        "empty": (b"", "no GGUF file: it has only 0 bytes"),
        "text": (b"not a tensor in sight", "no GGUF file: it begins with b'not '"),
        "future version": (b"GGUF\x09" + WHOLE[5:], "GGUF version 9"),
        "other byte order": (b"GGUF\x00\x00\x00\x03" + WHOLE[8:], "big-endian"),
        "unknown architecture": (
            replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0zebra"),
            "unknown model architecture: 'zebra'",
        ),
        "unknown tensor type": (
            WHOLE[:type_at] + b"\xc8" + WHOLE[type_at + 1 :],
            "the tensor 'token_embd.weight' of the unknown type 200",
        ),
        "unknown tokenizer": (
            replaced(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0gpt9"),
            "tokenizer: 'gpt9'",
        ),
        "two tokens alike": (
            replaced(b"\x01\0\0\0\0\0\0\0a", b"\x01\0\0\0\0\0\0\0b"),
            "has the token 'b' twice",
        ),
        "missing tensor": (replaced(b"output_norm.weight", b"output_lost.weight"), "output_norm.weight"),
    }


DAMAGES = damages()


@pytest.fixture
async def engine():
    """Serves one request of many steps all the while; it must come to its end unharmed."""
    async with AsyncEngine() as engine:
        await engine.install_model(
            ModelConfig(model="other", backend=FakeBackend(vocab_size=200, step_time=0.002))
        )
        await engine.start_model("other")
        params = SamplingParams(temperature=0, max_new_tokens=60)
        _, stream = await engine.start_request("other", "text", params)
        yield engine
        await stream.await_finished()
        assert stream.finish_reason is FinishReason.LENGTH
        assert stream.num_output_tokens == 60


def small(path, **changes) -> ModelConfig:
    numbers = {"max_num_seqs": 2, "max_num_batched_tokens": 64, "max_length": 256}
    return ModelConfig(**{"model": str(path), "name": "damaged", **numbers, **changes})


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_files_are_refused_by_name(damage, engine, tmp_path):
    path = tmp_path / "model.gguf"
    content, naming = DAMAGES[damage]
    path.write_bytes(content)
    with pytest.raises(ModelFormatError) as caught:
        await engine.install_model(small(path))
        await engine.start_model("damaged")
    sentence = str(caught.value)
    assert str(path) in sentence
    assert naming in sentence
    assert "\n" not in sentence
    if "damaged" in engine.models():
        await engine.release_model("damaged")
    path.write_bytes(WHOLE)
    await engine.install_model(small(path))
    await engine.start_model("damaged")
    params = SamplingParams(max_new_tokens=2, ignore_eos=True)
    _, stream = await engine.start_request("damaged", "hello", params)
    await stream.await_finished()
    assert stream.num_output_tokens == 2


@pytest.mark.parametrize(
    ("changes", "error", "naming"),
    [
        ({"num_blocks": 10**9}, InsufficientMemory, "does not fit"),
        ({"max_length": 5000}, InvalidArgument, "max_length is 5000; allowed: at most 2048"),
        ({"max_length": 2048, "memory_fraction": 1e-6}, InsufficientMemory, "does not fit"),
        ({"dtype": "float32"}, InvalidArgument, "dtype is 'float32'; allowed: auto, bf16"),
        ({"device": "tpu"}, InvalidArgument, "device is 'tpu'; allowed: auto, cpu"),
        ({"model": "/no/such/model.gguf"}, ModelNotFound, "/no/such/model.gguf"),
    ],
)
async def test_settings_that_cannot_be_met_are_refused_by_name(engine, changes, error, naming):
    with pytest.raises(error) as caught:
        await engine.install_model(small(PYHELP, **changes))
    assert naming in str(caught.value)
    assert engine.models() == ["other"]


async def test_context_larger_than_memory(engine, tmp_path):
    """The file says that it was made for two thousand million tokens; as many as fit are offered."""
    at = WHOLE.index(b"llama.context_length") + len(b"llama.context_length") + 4
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE[:at] + (2**31 - 1).to_bytes(4, "little") + WHOLE[at + 4 :])
    with pytest.raises(InsufficientMemory, match="does not fit") as caught:
        await engine.install_model(small(path, max_length=2**31 - 1))
    assert "\n" not in str(caught.value)
    assert engine.models() == ["other"]


async def test_folder_and_quantisation_choose_the_file(engine, tmp_path):
    for name in ("pyhelp-bf16", "pyhelp-q8_0"):
        shutil.copy(BUNDLED_MODELS[name], tmp_path)
    with pytest.raises(ModelFormatError, match=f"{tmp_path}:bf16 or {tmp_path}:q8_0"):
        await engine.install_model(small(tmp_path))
    info = await engine.install_model(small(f"{tmp_path}:Q8_0"))
    assert (info.backend, info.path) == ("llamacpp", tmp_path / "pyhelp-q8_0.gguf")
