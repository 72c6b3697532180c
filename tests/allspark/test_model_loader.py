"""HuggingFaceModel, DashInferModel and what they write."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millstream.allspark import (
    AsModelConfig,
    AsStatus,
    ConfigFieldMissingError,
    DashInferModel,
    Engine,
    GPTQSettings,
    HuggingFaceModel,
    IQSettings,
    ModelSerializerException,
    QuantizationSettings,
    RoPEScaleMethod,
    TargetDevice,
    get_quant_settings_cls,
)
from millstream.allspark.config.diconfig import DIConfigBuilder
from millstream.allspark.llm import LLM
from millstream.allspark.model_config import engine_config
from millstream.backends.fake import FakeBackend
from millstream.errors import InvalidArgument, ModelNotFound, NotSupported

TEN = {"max_new_tokens": 10, "do_sample": False}


class FolderBackend(FakeBackend):
    """A fake backend that insists on a folder with a configuration and weights, and remembers it."""

    def __init__(self) -> None:
        super().__init__(vocab_size=500, max_length=128, eos_token_ids=(2, 0))
        self.loaded: list[Path] = []

    def inspect(self, name: str, path: Path) -> Any:
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"there is nothing at {path}")
        return super().inspect(name, path)

    def load(self, info: Any, config: Any, progress: Any) -> Any:
        self.loaded.append(info.path)
        assert (info.path / "model.safetensors").read_bytes() == b"weights"
        return super().load(info, config, progress)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "chat_templates").mkdir(parents=True)
    (folder / "chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    config = {"architectures": ["Fake"], "max_position_embeddings": 128, "rope_theta": 1e4, "vocab_size": 500}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "eos_token_id": [2, 0]}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.bin").write_bytes(b"not needed")
    (folder / "README.md").write_text("not needed")
    return folder


@pytest.fixture
def backend() -> FolderBackend:
    return FolderBackend()


@pytest.fixture
def loader(checkpoint: Path, backend: FolderBackend) -> HuggingFaceModel:
    return HuggingFaceModel(checkpoint, "org/model", backend=backend)


def run(engine: Engine, config: AsModelConfig) -> list[int]:
    engine.install_model(config)
    name = config.model_name
    assert engine.start_model(name) is AsStatus.ALLSPARK_SUCCESS, engine.last_error
    _, handle, queue = engine.start_request_ids(name, None, [1, 2, 3], TEN)
    engine.sync_request(name, handle)
    ids: list[int] = queue.Get().ids_from_generate
    return ids


# Loading


def test_the_chain_leads_to_an_engine_without_a_copy(
    loader: HuggingFaceModel, checkpoint: Path, backend: FolderBackend
) -> None:
    with Engine() as engine:
        chained = loader.load_model().read_model_config().serialize_to_memory(engine).free_model()
        assert chained is loader
        builder = loader.create_reference_runtime_config_builder("m", TargetDevice.CPU, [0], max_batch=8)
        config = builder.build()
        assert (config.engine_max_length, config.engine_max_batch, config.compute_unit) == (128, 8, "CPU:0")
        assert loader.free_memory_serialize_file() is loader
        assert len(run(engine, config)) == 10
    assert backend.loaded == [checkpoint]


def test_weights_are_read_by_start_model_alone(loader: HuggingFaceModel, backend: FolderBackend) -> None:
    with Engine() as engine:
        loader.load_model().serialize_to_memory(engine)
        engine.install_model(loader.create_reference_runtime_config_builder("m", "cpu", [0], 2))
        assert backend.loaded == []
        engine.start_model("m")
        assert len(backend.loaded) == 1


def test_a_model_that_is_not_there(tmp_path: Path, backend: FolderBackend) -> None:
    with pytest.raises(ModelSerializerException, match="there is nothing at") as caught:
        HuggingFaceModel(tmp_path, "m", backend=backend).load_model()
    assert caught.value.code == AsStatus.ALLSPARK_PARAM_ERROR
    assert isinstance(caught.value.__cause__, ModelNotFound)


def test_load_arguments(loader: HuggingFaceModel, checkpoint: Path) -> None:
    assert loader.load_model("float16", True, "safetensors").data_type == "float16"
    with pytest.raises(NotSupported, match="pickled"):
        loader.load_model(load_format="pt")
    with pytest.raises(InvalidArgument, match="load_format"):
        loader.load_model(load_format="gguf")
    with pytest.raises(InvalidArgument, match="int3"):
        loader.load_model(override_data_type="int3")
    with pytest.raises(InvalidArgument, match="int3"):
        HuggingFaceModel(checkpoint, "m", user_set_data_type="int3")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelSerializerException, match="safetensors"):
        loader.load_model(load_format="safetensors")


def test_configuration_of_the_model(loader: HuggingFaceModel) -> None:
    config = loader.get_model_config()
    assert (config["max_position_embeddings"], config["eos_token_id"], config["rope_theta"]) == (128, 2, 1e4)
    assert loader.get_model_context_length() == 128


def test_the_data_type_reaches_the_engine(checkpoint: Path, backend: FolderBackend) -> None:
    loader = HuggingFaceModel(checkpoint, "m", user_set_data_type="float32", backend=backend)
    builder = loader.create_reference_runtime_config_builder("m", TargetDevice.CPU, [0], 8, 64)
    config = engine_config(builder.build())
    assert (config.dtype, config.max_length) == ("float32", 64)


def test_reference_generation_configuration(loader: HuggingFaceModel) -> None:
    said = {"temperature": 0.5, "eos_token_id": 2, "stop_words_ids": [[2], [0]]}
    assert loader.create_reference_generation_config_builder().build() == said
    short = AsModelConfig(engine_max_length=50)
    assert loader.create_reference_generation_config_builder(short).build() == {**said, "max_length": 50}
    long = AsModelConfig(engine_max_length=5000)
    assert loader.create_reference_generation_config_builder(long).build()["max_length"] == 128


def test_reference_generation_configuration_without_a_file() -> None:
    loader = HuggingFaceModel("any", "m", backend=FakeBackend(eos_token_ids=(7,)))
    assert loader.create_reference_generation_config_builder().build() == {"eos_token_id": 7}


def test_a_tokenizer_of_something_that_is_no_folder() -> None:
    loader = HuggingFaceModel("any", "m", backend=FakeBackend())
    assert loader.get_tokenizer() is None
    assert loader.initialised_tokenizer() is None
    tokenizer = loader.init_tokenizer().get_tokenizer()
    assert tokenizer.encode("a") == [97]
    assert loader.init_tokenizer().get_tokenizer() is tokenizer is loader.initialised_tokenizer()


# Serialising


def test_to_a_path_and_back_by_model_dir(
    loader: HuggingFaceModel, checkpoint: Path, backend: FolderBackend, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Engine() as engine:
        assert loader.load_model().serialize_to_path(engine, out) is loader
        config = loader.create_reference_runtime_config_builder("m", TargetDevice.CPU, [0], 8).build()
        assert config.model_path == str(out / "org_model.asgraph")
        assert config.weights_path == str(out / "org_model.asparam")
        ids = run(engine, config)
        info = engine.get_file_information(config.model_path, config.weights_path)
        assert info.create_version_graph == info.create_version_param == info.current_version_engine
    folder = out / "org_model.asparam"
    assert backend.loaded == [folder]
    assert os.path.samefile(folder / "model.safetensors", checkpoint / "model.safetensors")
    assert {path.name for path in folder.iterdir()} == {
        "chat_templates",
        "config.json",
        "dimodel_config.yaml",
        "generation_config.json",
        "model.safetensors",
    }
    assert len(ids) == 10
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_skip_if_exists_keeps_what_is_complete_and_the_same(loader: HuggingFaceModel, tmp_path: Path) -> None:
    with Engine() as engine:
        loader.serialize_to_path(engine, tmp_path)
        graph, mark = tmp_path / "org_model.asgraph", tmp_path / "org_model.asparam" / "mark"
        mark.touch()
        loader.serialize_to_path(engine, tmp_path, skip_if_exists=True)
        assert mark.exists()
        loader.serialize_to_path(engine, tmp_path)
        assert not mark.exists()
        mark.touch()
        loader.data_type = "float16"
        loader.serialize_to_path(engine, tmp_path, skip_if_exists=True)
        assert not mark.exists()
        mark.touch()
        graph.unlink()
        loader.serialize_to_path(engine, tmp_path, skip_if_exists=True)
        assert not mark.exists()


def test_serialize_chooses(checkpoint: Path, backend: FolderBackend, tmp_path: Path) -> None:
    with Engine() as engine:
        in_memory = HuggingFaceModel(checkpoint, "m", in_memory_serialize=True, backend=backend)
        in_memory.serialize(engine, model_output_dir=tmp_path / "out", weight_only_quant=True)
        assert not (tmp_path / "out").exists()
        to_path = HuggingFaceModel(checkpoint, "m", backend=backend)
        to_path.serialize(engine, model_output_dir=tmp_path / "out")
        assert (tmp_path / "out" / "m.asgraph").exists()
        with pytest.raises(InvalidArgument, match="model_output_dir"):
            to_path.serialize(engine)


def test_what_serialising_refuses(loader: HuggingFaceModel, tmp_path: Path) -> None:
    with Engine() as engine:
        with pytest.raises(InvalidArgument, match="customized_quant_config"):
            loader.serialize_to_memory(engine, enable_quant=True)
        for settings in (GPTQ, {**IQ, "weight_format": "fp8_e4m3"}):
            with pytest.raises(NotSupported):
                loader.serialize_to_path(
                    engine, tmp_path, enable_quant=True, customized_quant_config=settings
                )
        assert (
            loader.create_reference_runtime_config_builder("m", "cpu", [0], 8).build().quantization == "none"
        )
        with pytest.raises(NotSupported, match="load_lora"):
            loader.serialize_to_memory(engine, lora_cfg={"input_base_dir": "d", "lora_names": ["a"]})
        loader.serialize_to_memory(engine, lora_cfg={"lora_names": []})


def test_a_written_model_whose_folder_is_gone(loader: HuggingFaceModel, tmp_path: Path) -> None:
    with Engine() as engine:
        loader.serialize_to_path(engine, tmp_path)
        config = loader.create_reference_runtime_config_builder("m", "cpu", [0], 8).build()
        (tmp_path / "org_model.asparam").rename(tmp_path / "elsewhere")
        with pytest.raises(ModelNotFound, match="asparam"):
            engine.install_model(config)
        config.weights_path = str(tmp_path / "elsewhere")
        with pytest.raises(InvalidArgument, match="weights_path"):
            engine.install_model(config)


# Rotary scaling

YARN = {"factor": 4.0, "type": "yarn", "original_max_position_embeddings": 64}


def test_yarn_is_written_into_the_configuration(loader: HuggingFaceModel, tmp_path: Path) -> None:
    with Engine() as engine:
        loader.set_rope_scale_method(RoPEScaleMethod.YaRN, YARN).serialize_to_path(engine, tmp_path)
    config = json.loads((tmp_path / "org_model.asparam" / "config.json").read_text())
    scaling = {"factor": 4.0, "original_max_position_embeddings": 64, "rope_type": "yarn"}
    assert config["rope_scaling"] == loader.get_model_config()["rope_scaling"] == scaling
    assert config["rope_theta"] == 1e4


def test_yarn_in_memory_links_the_weights(
    loader: HuggingFaceModel, checkpoint: Path, backend: FolderBackend
) -> None:
    with Engine() as engine:
        loader.set_rope_scale_method(RoPEScaleMethod.YaRN, {"factor": 2.0}).serialize_to_memory(engine)
        loader.free_model().free_memory_serialize_file()
        config = loader.create_reference_runtime_config_builder("m", "cpu", [0], 8).build()
        run(engine, config)
        folder = backend.loaded[0]
        written = json.loads((folder / "config.json").read_text())
        assert written["rope_scaling"]["original_max_position_embeddings"] == 128
        assert (folder / "model.safetensors").resolve() == checkpoint / "model.safetensors"
    assert not folder.exists()
    assert (checkpoint / "model.safetensors").exists()


def test_the_newer_layout_keeps_its_base(loader: HuggingFaceModel, checkpoint: Path) -> None:
    config = {"max_position_embeddings": 128, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    loader.set_rope_scale_method(RoPEScaleMethod.YaRN, YARN)
    assert loader.get_model_config()["rope_parameters"] == {
        "rope_theta": 5e5,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_type": "yarn",
    }
    loader.set_rope_scale_method(RoPEScaleMethod.NO_SCALE)
    assert loader.get_model_config()["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "default"}


def test_rotary_scaling_that_is_refused(loader: HuggingFaceModel, checkpoint: Path) -> None:
    with pytest.raises(NotSupported, match="NTK"):
        loader.set_rope_scale_method(RoPEScaleMethod.NTK, {"factor": 2.0})
    with pytest.raises(InvalidArgument, match="factor"):
        loader.set_rope_scale_method(RoPEScaleMethod.YaRN, {})
    with pytest.raises(InvalidArgument, match="method"):
        loader.set_rope_scale_method("yarn", YARN)
    layers = {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}
    (checkpoint / "config.json").write_text(json.dumps(layers))
    with pytest.raises(NotSupported, match="layers"):
        loader.set_rope_scale_method(RoPEScaleMethod.NO_SCALE)


def test_no_scale_removes_the_older_entry(loader: HuggingFaceModel) -> None:
    loader.set_rope_scale_method(RoPEScaleMethod.NO_SCALE)
    assert loader.get_model_config()["rope_scaling"] is None


# DashInferModel


def test_a_written_model_is_found_with_its_configurations(
    loader: HuggingFaceModel, tmp_path: Path, backend: FolderBackend
) -> None:
    with Engine() as engine:
        loader.serialize_to_path(engine, tmp_path)
        model = DashInferModel(tmp_path, "org/model")
        chained = model.load_model().read_model_config().serialize_to_memory(engine).free_model()
        assert chained.free_memory_serialize_file() is model
        builder = model.create_reference_runtime_config_builder().max_batch(3).backend(backend)
        config = builder.build()
        assert model.create_reference_runtime_config_builder().build().engine_max_batch == 32
        assert (config.model_name, config.engine_max_length) == ("org_model", 128)
        assert len(run(engine, config)) == 10
    generation = model.create_reference_generation_config_builder(config).build()
    expected = {"temperature": 0.5, "max_length": 128, "eos_token_id": 2, "stop_words_ids": [[2], [0]]}
    assert generation == expected
    assert model.get_model_context_length() == 128
    assert model.get_model_config()["architectures"] == ["Fake"]
    assert model.init_quantization(enable=False) is model
    with pytest.raises(NotSupported):
        model.init_quantization()


def test_an_exported_configuration_can_be_given_by_path_or_content(
    loader: HuggingFaceModel, tmp_path: Path
) -> None:
    file = tmp_path / "deep" / "mine.yaml"
    assert loader.export_model_diconfig(file) is loader
    text = file.read_text()
    sections = msgspec.yaml.decode(text)
    assert set(sections) == {"model", "runtime_config", "generation_config", "tokenizer"}
    assert text.startswith("# What the model is")
    for model in (
        DashInferModel(tmp_path, config_file_path=file),
        DashInferModel(tmp_path, config_content=text),
    ):
        assert model.di_model_config == sections
        assert model.create_reference_runtime_config_builder().build().model_path == ""


def test_configurations_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        DashInferModel(tmp_path, "m")
    with pytest.raises(ValueError, match="no YAML"):
        DashInferModel(tmp_path, config_content="[1, 2")
    with pytest.raises(ConfigFieldMissingError, match="runtime_config"):
        DashInferModel(tmp_path, config_content="model: {}")
    content = (
        "model: {}\ngeneration_config: {}\nruntime_config: {model_name: m, compute_unit: {device_type: CPU},"
        " engine_max_length: 9, engine_max_batch: 1}"
    )
    with pytest.raises(ConfigFieldMissingError, match="max_position_embeddings"):
        DashInferModel(tmp_path, config_content=content).get_model_context_length()


def test_runtime_configuration_survives_the_yaml_file() -> None:
    config = AsModelConfig(
        model_name="m",
        compute_unit="CUDA:1",
        engine_max_length=77,
        engine_max_batch=5,
        num_threads=0,
        prefix_cache_ttl=9,
        memory_fraction=0.5,
        data_type="float16",
    )
    section = DIConfigBuilder().runtime_config(config).build_py_obj()["runtime_config"]
    content = msgspec.yaml.encode({"model": {}, "generation_config": {}, "runtime_config": section}).decode()
    model = DashInferModel("nowhere", config_content=content)
    assert model.create_reference_runtime_config_builder().build() == config


def test_diconfig_keeps_what_dashinfer_keeps() -> None:
    built = (
        DIConfigBuilder()
        .model({"hidden_size": 8, "torch_dtype": "bfloat16"}, hf_id="a/b")
        .generation_config({"top_k": 1, "seed": 3})
        .tokenizer("huggingface", "folder")
        .build_py_obj()
    )
    assert built["model"] == {"huggingface_id": "a/b", "modelscope_id": "", "hidden_size": 8}
    assert built["generation_config"] == {"top_k": 1}
    assert built["tokenizer"] == {"source": "huggingface", "local_path": "folder"}


def test_a_loader_of_ones_own_says_what_it_lacks() -> None:
    loader = LLM()
    for name in ("load_model", "init_quantization", "init_tokenizer", "get_tokenizer", "read_model_config"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(loader, name)()
    for name in ("get_model_config", "get_model_context_length", "free_model", "free_memory_serialize_file"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(loader, name)()
    with pytest.raises(NotImplementedError):
        loader.create_reference_generation_config_builder()


# Quantisation settings

IQ = {"quant_method": "instant_quant", "weight_format": "uint4", "group_size": 64}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "weight_sign": True, "sym": False}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weight_format": "int8"}, "int8"),
        ({"weight_format": "uint8", "compute_method": "weight_only"}, "int8"),
        ({"weight_format": "int8", "compute_method": "activate_quant"}, "int8"),
        ({"weight_format": "uint4"}, "int4"),
        ({"weight_format": "int4", "group_size": 32}, "int4"),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_instant_quant_reaches_the_engine(
    settings: dict[str, Any], expected: str, in_memory: bool, checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"quant_method": "instant_quant", **settings}
    model = HuggingFaceModel(checkpoint, "m", in_memory_serialize=in_memory, backend=FolderBackend())
    with Engine() as engine:
        model.serialize(
            engine, tmp_path / "out", enable_quant=True, customized_quant_config=settings
        ).free_model()
        config = model.create_reference_runtime_config_builder("m", "cpu", [0], 8).build()
        assert engine_config(config).quantization == expected
        with pytest.raises(NotSupported, match="a fake model has no weights"):
            engine.install_model(config)
    if not in_memory:
        path = str(tmp_path / "out" / "m.asgraph")
        written = AsModelConfig(model_name="m", model_path=path, compute_unit="CPU")
        assert engine_config(written).quantization == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_format": "int8", "group_size": 128}, "group_size is 128"),
        ({"weight_format": "int4", "group_size": 16}, "group_size is 16"),
        ({"weight_format": "int4", "group_settings": {".*": 64}}, "group_settings"),
        ({"weight_format": "fp8_e4m3"}, "weight_format is 'fp8_e4m3'"),
    ],
)
def test_instant_quant_that_the_engine_does_not_do(
    changes: dict[str, Any], match: str, loader: HuggingFaceModel
) -> None:
    with pytest.raises(NotSupported, match=match):
        loader.init_quantization(customized_quant_config={"quant_method": "instant_quant", **changes})
    assert loader.quant_setting is None


def test_quantisation_settings_are_read(loader: HuggingFaceModel) -> None:
    with pytest.raises(InvalidArgument, match="settings"):
        loader.init_quantization(enable=False)
    loader.init_quantization(enable=False, customized_quant_config=IQ)
    assert isinstance(loader.quant_setting, IQSettings)


def test_settings_of_both_methods() -> None:
    iq = QuantizationSettings.from_hf_config(IQ)
    assert (iq.get_name(), iq.get_weight_bits(), iq.get_group_num()) == ("instant_quant", 4, 64)
    assert (iq.is_quant_symmetric(), iq.guess_weight_data_type(), iq.weight_sign.name) == (
        False,
        "uint4",
        "Unsigned",
    )
    gptq = get_quant_settings_cls("gptq", GPTQ)
    assert isinstance(gptq, GPTQSettings)
    assert (gptq.get_name(), gptq.get_weight_bits(), gptq.get_group_num()) == ("gptq", 4, 128)
    assert (gptq.is_quant_symmetric(), gptq.weight_sign.name, gptq.get_group_settings()) == (
        False,
        "Signed",
        None,
    )
    assert gptq.get_support_status("bfloat16", "uint4") is False
    assert iq.get_support_status("bfloat16", "uint4") is True
    assert iq.get_support_status("bfloat16", "int8") is False
    with pytest.raises(NotSupported, match="uint4"):
        gptq.to_as_quant_config("bfloat16")


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("awq", {}, "awq"),
        ("gptq", {**GPTQ, "bits": 3}, "bits"),
        ("gptq", {**GPTQ, "desc_act": True}, "desc_act"),
        ("gptq", IQ, "quant_method"),
        ("iq", {**IQ, "weight_format": "int2"}, "weight_format"),
        ("iq", {**IQ, "compute_method": "activate_quant"}, "weight_format"),
        ("iq", {**IQ, "compute_method": "fast"}, "compute_method"),
    ],
)
def test_settings_that_contradict_themselves(method: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        get_quant_settings_cls(method, settings)
