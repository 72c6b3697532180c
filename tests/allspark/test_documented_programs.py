"""DashInfer's documented snippets, as they stand, with names, paths and devices filled in."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from millstream import allspark
from millstream.allspark import (
    ASGenerationConfigBuilder,
    AsModelRuntimeConfigBuilder,
    AsStatus,
    Engine,
    GenerateRequestStatus,
    TargetDevice,
)
from millstream.backends.bundled import BUNDLED_MODELS
from millstream.backends.fake import FakeBackend
from millstream.errors import InvalidArgument, ModelNotFound

IMPORTS = """
from millstream import allspark
from millstream.allspark import *
from millstream.allspark.engine import *
"""

SIMPLE = """
generated_ids = []

engine = allspark.Engine()

model_loader = allspark.HuggingFaceModel(model_local_path, safe_model_name)

(model_loader.load_model()
    .read_model_config()
    .serialize_to_memory(engine)
    .free_model())

# create engine runtime config.
runtime_cfg_builder = model_loader.create_reference_runtime_config_builder(safe_model_name, TargetDevice.CPU, device_list, max_batch=8)
runtime_cfg = runtime_cfg_builder.build()

# install and start.
engine.install_model(runtime_cfg)
engine.start_model(safe_model_name)

# generation request.
gen_cfg = model_loader.create_reference_generation_config_builder(runtime_cfg)

status, handle, queue = engine.start_request_text(safe_model_name, model_loader, "who are you?", gen_cfg)


# sync request will block request until request is finished.
engine.sync_request(safe_model_name, handle)

# sync output
generated_elem = queue.Get()
generated_ids += generated_elem.ids_from_generate

# free request and model
engine.release_request(safe_model_name, handle)
engine.stop_model(safe_model_name)
"""  # noqa: E501

BUILDER = """
# Create a new builder instance
builder = AsModelRuntimeConfigBuilder()

# Set the model name
builder.model_name("my_model")

# Set the model directory and file name prefix
# User can specify this folder to start running the serialized model.
builder.model_dir("/path/to/model", "model_prefix")

# Set the compute unit to use CUDA device 0
builder.compute_unit(TargetDevice.CUDA, [0])

# Set the maximum batch size and sequence length
builder.max_batch(32)
builder.max_length(2048)

# Set the cache mode to quantize key-value pairs
builder.kv_cache_mode(AsCacheMode.AsCacheQuantU4)

# Build the runtime configuration
runtime_config = builder.build()
"""

GENERATION = """
builder = ASGenerationConfigBuilder()
config = (builder.do_sample()
        .max_length(512)
        .temperature(0.7)
        .top_k(50)
        .build())
"""

OUTPUT = """
generated_ids = []
status = queue.GenerateStatus()

## in following 3 status, it means tokens are generating
while (status == GenerateRequestStatus.Init
        or status == GenerateRequestStatus.Generating
        or status == GenerateRequestStatus.ContextFinished):
    elements = queue.Get()
    if elements is not None:
        print(f"new token: {elements.ids_from_generate}")
        generated_ids += elements.ids_from_generate
    status = queue.GenerateStatus()
    if status == GenerateRequestStatus.GenerateFinished:
        break
        # This means generated is finished.
    if status == GenerateRequestStatus.GenerateInterrupted:
        break
        # This means the GPU has no available resources; the request has been halted by the engine.
        # The client should collect the tokens generated so far and initiate a new request later.
"""


def run(program: str, **names: Any) -> dict[str, Any]:
    """The program's names after it has run, with `names` filled in after the imports."""
    namespace: dict[str, Any] = {}
    exec(compile(IMPORTS, "imports", "exec"), namespace)
    namespace.update(names)
    exec(compile(program, "documentation", "exec"), namespace)
    return namespace


def over_fake_weights() -> Any:
    """The package with a loader whose models need no weights; 7 ends an output."""
    loader = partial(allspark.HuggingFaceModel, backend=FakeBackend(max_length=128, eos_token_ids=(7,)))
    return SimpleNamespace(Engine=allspark.Engine, HuggingFaceModel=loader)


def test_the_simple_program_on_fake_weights() -> None:
    after = run(
        SIMPLE,
        allspark=over_fake_weights(),
        model_local_path="fake",
        safe_model_name="fake",
        device_list=[0],
    )
    prompt_length = len("who are you?")
    assert after["status"] is AsStatus.ALLSPARK_SUCCESS
    ids = after["generated_ids"]
    assert len(ids) == 128 - prompt_length or ids[-1] == 7
    assert after["queue"].GenerateStatus() is GenerateRequestStatus.GenerateFinished
    after["engine"].close()


def test_the_simple_program_on_the_bundled_model() -> None:
    pytest.importorskip("torch")
    folder = str(BUNDLED_MODELS["pyhelp"])
    after = run(SIMPLE, model_local_path=folder, safe_model_name="pyhelp", device_list=[0])
    assert after["status"] is AsStatus.ALLSPARK_SUCCESS
    assert after["generated_ids"]
    tokenizer = after["model_loader"].init_tokenizer().get_tokenizer()
    assert tokenizer.encode("who are you?") == after["engine"].tokenizer("pyhelp").encode("who are you?")
    text = tokenizer.decode(after["generated_ids"], skip_special_tokens=True)
    assert text == after["generated_elem"].text
    after["engine"].close()


def test_a_gpu_that_is_not_there_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    loader = allspark.HuggingFaceModel("pyhelp", "pyhelp").load_model()
    config = loader.create_reference_runtime_config_builder("pyhelp", TargetDevice.CUDA, [0], 8).build()
    with Engine() as engine, pytest.raises(InvalidArgument, match="cuda:0"):
        engine.install_model(config)


def test_the_runtime_configuration_builder() -> None:
    config = run(BUILDER)["runtime_config"]
    assert (config.model_name, config.compute_unit) == ("my_model", "CUDA:0")
    assert config.model_path == "/path/to/model/model_prefix.asgraph"
    assert config.cache_mode is allspark.AsCacheMode.AsCacheQuantU4
    with Engine() as engine, pytest.raises(ModelNotFound, match="graph does not exist"):
        engine.install_model(config)


def test_the_generation_configuration_builder() -> None:
    config = run(GENERATION)["config"]
    assert config == {"do_sample": True, "max_length": 512, "temperature": 0.7, "top_k": 50}


def test_the_output_loop(capsys: pytest.CaptureFixture[str]) -> None:
    builder = AsModelRuntimeConfigBuilder().model_name("m").compute_unit("CPU").max_length(64)
    with Engine() as engine:
        engine.install_model(builder.backend(FakeBackend(step_time=0.001)))
        engine.start_model("m")
        config = ASGenerationConfigBuilder().max_new_tokens(20)
        _, handle, queue = engine.start_request_text("m", None, "hello", config)
        after = run(OUTPUT, queue=queue)
        assert after["status"] is GenerateRequestStatus.GenerateFinished
        assert len(after["generated_ids"]) == 20
        assert "new token: [" in capsys.readouterr().out
        assert engine.release_request("m", handle) is AsStatus.ALLSPARK_SUCCESS
