from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.llamacpp.backend import LlamaCppBackend
from millstream.backends.llamacpp.memory import gpu_memory
from millstream.backends.torch.backend import TorchBackend
from millstream.backends.worker import WorkerConfig
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")

BF16, Q8_0 = BUNDLED_MODELS["pyhelp-bf16"], BUNDLED_MODELS["pyhelp-q8_0"]


@pytest.fixture
def backend() -> LlamaCppBackend:
    return LlamaCppBackend()


def config(**changes) -> WorkerConfig:
    numbers = {"max_length": 512, "max_num_seqs": 4, "max_num_batched_tokens": 256, "block_size": 16}
    return WorkerConfig(device="cpu", dtype="bf16", num_blocks=32, threads=1, **{**numbers, **changes})


def write_model(path: Path, architecture: str, tokens: int = 0, **said) -> Path:
    """A model of one small tensor; keyword `ssm__state_size=16` sets ARCHITECTURE.ssm.state_size."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("no_vocab")
    if tokens:
        writer.add_vocab_size(tokens)
    for key, value in {"block_count": 2, "context_length": 64, "embedding_length": 32, **said}.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        (writer.add_float32 if isinstance(value, float) else add)(
            key if key.startswith("general.") else f"{architecture}.{key.replace('__', '.')}", value
        )
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_same_model_as_the_checkpoint(backend: LlamaCppBackend) -> None:
    info = backend.inspect("pyhelp", BF16)
    torch = TorchBackend().inspect("pyhelp", BUNDLED_MODELS["pyhelp"])
    assert (info.name, info.path, info.backend, info.architecture) == ("pyhelp", BF16, "llamacpp", "llama")
    for field in ("num_parameters", "vocab_size", "max_length"):
        assert getattr(info, field) == getattr(torch, field)
    assert set(torch.eos_token_ids) <= set(info.eos_token_ids)
    assert backend.load_tokenizer(info).eos_token_ids == info.eos_token_ids


def test_folder_with_one_model(backend: LlamaCppBackend, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(BF16)
    assert backend.inspect("m", tmp_path).path == tmp_path / "m.gguf"
    (tmp_path / "n-Q8_0.gguf").symlink_to(Q8_0)
    with pytest.raises(
        ModelFormatError, match=rf"2 \.gguf models: name one of them, {tmp_path}:m.gguf or .*:Q8_0"
    ):
        backend.inspect("m", tmp_path)


def test_resolve(backend: LlamaCppBackend) -> None:
    info = backend.inspect("m", Q8_0)
    device, dtype, threads = backend.resolve(info, device="cpu", dtype="auto", threads=0)
    assert (device, dtype) == ("cpu", "q8_0")
    assert threads >= 1
    assert LlamaCppBackend().resolve(info, device="auto", dtype="q8_0", threads=3)[1:] == ("q8_0", 3)
    for wrong, message in [
        ({"device": "tpu"}, "device is 'tpu'; allowed: auto, cpu"),
        (
            {"dtype": "bfloat16"},
            "dtype is 'bfloat16'; allowed: auto, q8_0, because pyhelp-q8_0.gguf is in q8_0",
        ),
        ({"threads": -1}, "threads is -1; allowed: 0"),
    ]:
        with pytest.raises(InvalidArgument, match=message):
            backend.resolve(info, **{"device": "auto", "dtype": "auto", "threads": 0, **wrong})


def test_memory_needs(backend: LlamaCppBackend) -> None:
    info = backend.inspect("m", BF16)
    needs = backend.memory_needs(info, config())
    assert needs.kv_per_block == 16 * 6 * 4 * (32 + 32) * 2
    assert 0 < BF16.stat().st_size - needs.weights < 1 << 20
    assert backend.memory_needs(info, config(block_size=32)).kv_per_block == 2 * needs.kv_per_block
    for larger in ({"max_length": 2048}, {"max_num_seqs": 200}, {"max_num_batched_tokens": 512}):
        assert backend.memory_needs(info, config(**larger)).activations > needs.activations
    assert backend.memory_limit("cpu").limit_bytes > 0


def test_memory_of_layers_without_a_cache(backend: LlamaCppBackend, tmp_path: Path) -> None:
    sizes = {"ssm__inner_size": 64, "ssm__state_size": 16, "ssm__conv_kernel": 4, "attention__head_count": 0}
    info = backend.inspect("m", write_model(tmp_path / "m.gguf", "mamba", 8, **sizes))
    needs = [backend.memory_needs(info, config(max_num_seqs=count)) for count in (1, 3)]
    assert needs[0].kv_per_block == 1
    per_sequence = 2 * 4 * (3 * 64 + 64 * 16)
    assert needs[1].activations - needs[0].activations == 2 * per_sequence


def test_recommended_sampling(backend: LlamaCppBackend, tmp_path: Path) -> None:
    said = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "attention__head_count": 4}
    info = backend.inspect("m", write_model(tmp_path / "m.gguf", "llama", 8, **said))
    assert info.generation_defaults == {"temperature": 0.5, "top_k": 7}
    assert (info.vocab_size, info.eos_token_ids) == (8, ())
    with pytest.raises(ModelFormatError, match=r"m.gguf has no tokenizer"):
        backend.load_tokenizer(info)


@pytest.mark.parametrize(
    ("architecture", "tokens", "said", "error", "says"),
    [
        ("perceptron9000", 8, {}, ModelFormatError, "unknown model architecture: 'perceptron9000'"),
        ("clip", 8, {}, ModelFormatError, "CLIP cannot be used as main model"),
        ("t5", 8, {}, NotSupported, "architecture t5, which does not write a text token by token"),
        ("llada", 8, {}, NotSupported, "architecture llada, which does not write a text"),
        ("wavtokenizer-dec", 8, {}, NotSupported, "architecture wavtokenizer-dec, which does not write"),
        ("bert", 8, {"pooling_type": 4}, NotSupported, "is a reranker, which gives neither texts nor"),
        ("qwen3", 8, {"pooling_type": 4}, NotSupported, "is a reranker, which gives neither texts nor"),
        ("qwen3", 8, {"pooling_type": 5}, ModelFormatError, "qwen3.pooling_type is 5; allowed: 0 to 4"),
        ("gemma3", 8, {"dense_2_feat_in": 7, "dense_2_feat_out": 9}, ModelFormatError, "dense_2 makes 9 num"),
        (
            "gemma3",
            8,
            {"dense_2_feat_in": 32, "dense_2_feat_out": 9},
            ModelFormatError,
            "make 9 numbers of 32",
        ),
        ("llama", 0, {}, ModelFormatError, "does not say how many tokens"),
        ("llama", 8, {"block_count": 0}, ModelFormatError, "llama.block_count is 0; allowed: 1 to 512"),
    ],
)
def test_models_that_cannot_be_served(
    backend: LlamaCppBackend, tmp_path: Path, architecture: str, tokens: int, said, error, says: str
) -> None:
    path = write_model(tmp_path / "m.gguf", architecture, tokens, **{"attention__head_count": 4, **said})
    with pytest.raises(error, match=says) as caught:
        backend.inspect("m", path)
    assert "\n" not in str(caught.value)


def test_a_file_that_was_damaged_since_is_noticed_at_loading(
    backend: LlamaCppBackend, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BF16.read_bytes())
    info = backend.inspect("m", path)
    path.write_bytes(BF16.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match=r"m.gguf is truncated"):
        backend.load(info, config(), lambda what, share: None)


def test_memory_of_all_gpus() -> None:
    memories = [SimpleNamespace(total=100, used=30), SimpleNamespace(total=50, used=5)]
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: memories[handle],
    )
    limit = gpu_memory(nvml)
    assert (limit.limit_bytes, limit.used_bytes, limit.source) == (150, 35, "2 GPUs")
