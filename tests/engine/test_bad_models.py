"""Models that cannot run: one clear sentence each, while the engine goes on serving another one."""

import json
import shutil
from pathlib import Path

import pytest

from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FakeBackend
from millstream.engine import AsyncEngine, FinishReason, ModelConfig, SamplingParams
from millstream.errors import (
    InsufficientMemory,
    InvalidArgument,
    MillstreamError,
    ModelFormatError,
    ModelNotFound,
    NotSupported,
)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def text_for_weights(folder):
    (folder / "model.safetensors").write_text("not a tensor in sight")


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def other_shape(folder):
    edit_config(folder, intermediate_size=96)


def unknown_architecture(folder):
    edit_config(folder, model_type="perceptron9000", architectures=["PerceptronForCausalLM"])


def encoder(folder):
    edit_config(folder, model_type="bert", architectures=["BertModel"])


CASES = {
    no_weights: (ModelFormatError, "safetensors"),
    truncated_weights: (ModelFormatError, "model.safetensors"),
    truncated_header: (ModelFormatError, "model.safetensors"),
    text_for_weights: (ModelFormatError, "model.safetensors"),
    no_config: (MillstreamError, "config.json"),
    broken_config: (ModelFormatError, "config.json"),
    other_shape: (ModelFormatError, "shape"),
    unknown_architecture: (MillstreamError, "perceptron9000"),
    encoder: (ModelFormatError, "do not fit BertModel"),
}


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


@pytest.mark.torch
@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
async def test_damaged_models_are_refused_by_name(damage, engine, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(PYHELP, folder)
    damage(folder)
    error, naming = CASES[damage]
    config = ModelConfig(model=str(folder), name="damaged", max_num_seqs=2, max_num_batched_tokens=64)
    with pytest.raises(error) as caught:
        await engine.install_model(config)
        await engine.start_model("damaged")
    sentence = str(caught.value)
    assert naming in sentence
    assert "\n" not in sentence
    if "damaged" in engine.models():
        await engine.release_model("damaged")
    shutil.rmtree(folder)
    shutil.copytree(PYHELP, folder)
    await engine.install_model(config)
    await engine.start_model("damaged")
    params = SamplingParams(max_new_tokens=2, ignore_eos=True)
    _, stream = await engine.start_request("damaged", "hello", params)
    await stream.await_finished()
    assert stream.num_output_tokens == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "error", "naming"),
    [
        ({"model": "no-such-model"}, ModelNotFound, "no-such-model"),
        ({"model": "/no/such/folder"}, ModelNotFound, "/no/such/folder"),
        ({"dtype": "float4"}, InvalidArgument, "dtype is 'float4'; allowed: "),
        ({"device": "tpu"}, InvalidArgument, "device is 'tpu'; allowed: "),
        ({"backend": "jax"}, InvalidArgument, "jax"),
        ({"max_length": 5000}, InvalidArgument, "max_length is 5000; allowed: at most 2048"),
        ({"num_blocks": 10**9}, InsufficientMemory, "does not fit"),
        ({"model": "model.gguf"}, (NotSupported, ModelNotFound), "gguf"),
    ],
)
async def test_settings_that_cannot_be_met_are_refused_by_name(engine, changes, error, naming):
    with pytest.raises(error) as caught:
        await engine.install_model(ModelConfig(**{"model": "pyhelp", "name": "m", **changes}))
    assert naming in str(caught.value)
    assert engine.models() == ["other"]


@pytest.mark.torch
async def test_hub_names_are_served_from_a_cache_folder(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out; there is no network in it."""
    repo = Path(tmp_path) / "models--someone--helper"
    snapshot = repo / "snapshots" / ("0" * 40)
    shutil.copytree(PYHELP, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    async with AsyncEngine() as engine:
        info = await engine.install_model(ModelConfig(model="someone/helper"))
        assert info.path == snapshot
        with pytest.raises(ModelNotFound, match="someone/else"):
            await engine.install_model(ModelConfig(model="someone/else"))
