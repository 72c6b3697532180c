"""TorchBackend: what it says of a model before loading it, and that loading keeps to that."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoConfig, AutoModelForCausalLM

from millstream.backends.machine.hardware import physical_cores
from millstream.backends.native import Missing, levels, set_threads
from millstream.backends.torch.backend import TorchBackend
from millstream.backends.worker import ModelInfo, WorkerConfig
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

from .checkpoints import greedy, save_checkpoint
from .driver import Driver

PROMPT = [5, 17, 99, 4]


def _config(dtype: str = "float32") -> WorkerConfig:
    return WorkerConfig(
        device="cpu",
        dtype=dtype,
        max_length=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=4,
        num_blocks=40,
        threads=1,
    )


def test_a_native_model_from_inspection_to_tokens(tmp_path: Path) -> None:
    model = save_checkpoint("qwen2", tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    assert (info.name, info.path, info.backend) == ("tiny", tmp_path, "torch")
    assert info.architecture == "Qwen2ForCausalLM"
    assert info.num_parameters == model.num_parameters()
    assert (info.vocab_size, info.max_length, info.eos_token_ids) == (128, 256, (2,))
    told: list[tuple[str, float]] = []
    worker = backend.load(info, _config(), lambda what, share: told.append((what, share)))
    assert told[-1] == ("weights", 1.0)
    assert (worker.spec.vocab_size, worker.spec.max_length, worker.spec.dtype) == (128, 64, "float32")
    assert Driver(worker).run([PROMPT], 5) == [greedy(model, PROMPT, 5)]


def test_another_model_runs_through_transformers(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=128, n_embd=48, n_layer=2, n_head=4, n_positions=128)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.train(False)
    model.save_pretrained(tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    assert (info.architecture, info.max_length) == ("GPT2LMHeadModel", 128)
    assert backend.memory_needs(info, _config()).kv_per_block == 2 * 2 * 48 * 4 * 4
    worker = backend.load(info, _config(), lambda what, share: None)
    assert Driver(worker).run([PROMPT], 5) == [greedy(model, PROMPT, 5)]


@pytest.mark.parametrize("tunes", [True, False])
def test_threads_are_chosen_where_they_change_no_result(tunes: bool, tmp_path: Path) -> None:
    save_checkpoint("qwen2", tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    config = replace(_config(), block_size=16, threads=2, tunes_threads=tunes)
    try:
        products_of_torch = backend.load(info, config, lambda what, share: None)
        native = backend.load(info, replace(config, quantization="int8"), lambda what, share: None)
    finally:
        torch.set_num_threads(1)
        set_threads(1)
    assert products_of_torch.spec.learning_steps == 1
    assert (native.spec.learning_steps > 1) is (tunes and not isinstance(levels(), Missing))


def test_memory_needs(tmp_path: Path) -> None:
    model = save_checkpoint("llama", tmp_path)
    backend = TorchBackend()
    info = backend.inspect("tiny", tmp_path)
    whole, half = (backend.memory_needs(info, _config(dtype)) for dtype in ("float32", "bfloat16"))
    assert whole.weights == 4 * model.num_parameters()
    assert whole.kv_per_block == 2 * half.kv_per_block == 3 * 2 * 2 * 8 * 4 * 4
    assert half.activations < whole.activations
    assert whole.activations > 64 * (48 + 80) * 4


def test_models_that_do_not_run_are_found_at_once(tmp_path: Path) -> None:
    backend = TorchBackend()
    with pytest.raises(ModelFormatError, match=r"no config\.json"):
        backend.inspect("nothing", tmp_path)
    save_checkpoint("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelFormatError, match="truncated"):
        backend.inspect("cut", tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="safetensors"):
        backend.inspect("pickled", tmp_path)


def test_a_known_kind_that_cannot_run(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(NotSupported, match="t5"):
        TorchBackend().inspect("t5", tmp_path)


INFO = ModelInfo(
    name="any",
    path=Path(),
    backend="torch",
    architecture="Any",
    num_parameters=1,
    vocab_size=1,
    max_length=1,
    eos_token_ids=(),
    generation_defaults={},
)


def test_auto_is_resolved() -> None:
    device, dtype, threads = TorchBackend().resolve(INFO, device="auto", dtype="auto", threads=0)
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert dtype in ("bfloat16", "float16", "float32")
    assert threads == physical_cores()


def test_what_is_said_is_kept() -> None:
    resolved = TorchBackend().resolve(INFO, device="cpu", dtype="float32", threads=3)
    assert resolved == ("cpu", "float32", 3)


@pytest.mark.parametrize(
    ("name", "value"), [("device", "tpu"), ("device", "cuda:99"), ("dtype", "int4"), ("threads", -1)]
)
def test_what_does_not_exist_is_refused(name: str, value: str | int) -> None:
    asked: dict[str, str | int] = {"device": "cpu", "dtype": "auto", "threads": 0, name: value}
    with pytest.raises(InvalidArgument, match=str(value)):
        TorchBackend().resolve(
            INFO, device=str(asked["device"]), dtype=str(asked["dtype"]), threads=int(asked["threads"])
        )


def test_the_limit_of_the_cpu_is_the_machines() -> None:
    limit = TorchBackend().memory_limit("cpu")
    assert 0 < limit.used_bytes < limit.limit_bytes
