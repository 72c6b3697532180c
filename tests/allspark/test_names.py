"""Names, enumerations and sub-modules that DashInfer programs import."""

import subprocess
import sys
from enum import Enum

import pytest

from millstream import allspark, errors
from millstream.allspark.status import status_of

S = allspark.AsStatus

NAMES = (
    "Engine",
    "AsStatus",
    "AsModelConfig",
    "GenerateRequestStatus",
    "MultiMediaInfo",
    "HuggingFaceModel",
    "AsModelRuntimeConfigBuilder",
    "ModelSerializerException",
    "GPTQSettings",
    "IQSettings",
    "QuantizationSettings",
    "get_quant_settings_cls",
    "save_allsparky_dltensor_tofile",
    "set_global_header",
    "AsCacheMode",
    "AsMHAPrefill",
    "AsEvictionStrategy",
    "AsSchedulingStrategy",
    "VocabType",
    "AsFileInfo",
    "AsEngineStat",
    "AsEngine",
    "ResultQueue",
    "GeneratedElements",
    "ClientEngine",
)
MODULES = {
    "engine": "Engine TargetDevice RoPEScaleMethod RequestStatInfo AsStatus AsModelConfig AsCacheMode",
    "runtime_config": "AsModelRuntimeConfigBuilder get_cache_mode_from_str",
    "generation_config": "ASGenerationConfigBuilder GenerationConfigAdapter",
    "model_loader": "LLM HuggingFaceModel DashInferModel LoadFormat ConfigFieldMissingError",
    "prompt_utils": "PromptTemplate",
    "config.diconfig": "DIConfigBuilder",
    "quant.quantization_config": "QuantizationSettings SubChannel SignType QuantComputeMode",
    "quant.quantization_config_gptq": "GPTQSettings",
    "quant.quantization_config_iq": "IQSettings",
    "_allspark": "AsStatus GenerateRequestStatus AsCacheMode VocabType",
    "client": "ClientEngine",
}
ENUMS: dict[type[Enum], dict[str, object]] = {
    S: {
        "ALLSPARK_SUCCESS": 0,
        "ALLSPARK_UNKNOWN_ERROR": 1,
        "ALLSPARK_PARAM_ERROR": 2,
        "ALLSPARK_IO_ERROR": 3,
        "ALLSPARK_MEMORY_ERROR": 4,
        "ALLSPARK_RUNTIME_ERROR": 5,
        "ALLSPARK_EXCEED_LIMIT_ERROR": 7,
        "ALLSPARK_INVALID_CALL_ERROR": 8,
        "ALLSPARK_ALLSPARK_INVALID_CALL_ERROR": 8,
        "ALLSPARK_EMPTY_REQUEST": 9,
        "ALLSPARK_ILLEGAL_REQUEST_ID": 10,
        "ALLSPARK_CACHE_MEMORY_OUT": 11,
        "ALLSPARK_REQUEST_DENIED": 12,
        "ALLSPARK_CHUNK_PREFILL": 14,
        "ALLSPARK_DEPRECATED": 20,
        "ALLSPARK_LORA_NUM_EXCEED_LIMIT_ERROR": 21,
        "ALLSPARK_LORA_RANK_EXCEED_LIMIT_ERROR": 22,
        "ALLSPARK_LORA_NOT_FOUND": 23,
        "ALLSPARK_LORA_ALREADY_LOADED": 24,
        "ALLSPARK_LORA_IN_USE": 25,
        "ALLSPARK_STREAMING": 200,
    },
    allspark.GenerateRequestStatus: {
        "Init": 0,
        "ContextFinished": 1,
        "Generating": 2,
        "GenerateFinished": 3,
        "GenerateInterrupted": 4,
        "InternalError": 5,
    },
    allspark.AsCacheMode: {"AsCacheDefault": 0, "AsCacheQuantI8": 1, "AsCacheQuantU4": 2},
    allspark.AsMHAPrefill: {"AsPrefillDefault": 0, "AsPrefillFlashV2": 10, "AsPrefillXformer": 11},
    allspark.AsEvictionStrategy: {"MaxLength": 0, "Random": 1},
    allspark.AsSchedulingStrategy: {"ContextPriority": 0, "Balance": 1},
    allspark.VocabType: {
        "VOCAB_TYPE_WPM": 0,
        "VOCAB_TYPE_SPM": 1,
        "VOCAB_TYPE_UGM": 2,
        "VOCAB_TYPE_BPE": 3,
    },
    allspark.TargetDevice: {"CUDA": "CUDA", "CPU": "CPU", "CPU_NUMA": "CPU_NUMA"},
    allspark.RoPEScaleMethod: {"NO_SCALE": 0, "YaRN": 3, "NTK": 4},
    allspark.RequestInferType: {"Generate": 0, "ModelInference": 1},
    allspark.RequestMMType: {"TextInput": 0, "MultiMediaTypeRichText": 1},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_exported(name: str) -> None:
    assert name in allspark.__all__
    assert getattr(allspark, name) is not None


@pytest.mark.parametrize("module", MODULES)
def test_sub_modules_hold_what_programs_import_from_them(module: str) -> None:
    namespace: dict[str, object] = {}
    exec(f"from millstream.allspark.{module} import {', '.join(MODULES[module].split())}", namespace)
    exec(f"from millstream.allspark.{module} import *", namespace)


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_enumerations_have_these_members_and_no_others(kind: type[Enum]) -> None:
    assert {name: member.value for name, member in kind.__members__.items()} == ENUMS[kind]


def test_a_status_prints_its_name() -> None:
    assert str(S.ALLSPARK_SUCCESS) == "AsStatus.ALLSPARK_SUCCESS"


def test_importing_prints_nothing_and_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from millstream import allspark\n"
        "from millstream.allspark import *\n"
        "from millstream.allspark.engine import *\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgument("x", 1, "2"), S.ALLSPARK_PARAM_ERROR),
        (errors.NotSupported("no"), S.ALLSPARK_PARAM_ERROR),
        (errors.ModelNotFound("no"), S.ALLSPARK_PARAM_ERROR),
        (errors.LimitExceeded("no"), S.ALLSPARK_EXCEED_LIMIT_ERROR),
        (errors.QueueFull("no", 1.0), S.ALLSPARK_REQUEST_DENIED),
        (errors.ModelStateError("no"), S.ALLSPARK_INVALID_CALL_ERROR),
        (errors.UnknownRequest("no"), S.ALLSPARK_ILLEGAL_REQUEST_ID),
        (errors.InsufficientMemory("no"), S.ALLSPARK_MEMORY_ERROR),
        (errors.ModelFormatError("no"), S.ALLSPARK_IO_ERROR),
        (errors.WorkerError("no"), S.ALLSPARK_RUNTIME_ERROR),
        (errors.MillstreamError("no"), S.ALLSPARK_UNKNOWN_ERROR),
    ],
)
def test_every_error_has_a_status(error: errors.MillstreamError, status: allspark.AsStatus) -> None:
    assert status_of(error) is status


def test_client_engine_is_refused() -> None:
    with pytest.raises(errors.NotSupported, match="NUMA"):
        allspark.ClientEngine()


def test_binary_files_of_dashinfer_are_refused() -> None:
    with pytest.raises(errors.NotSupported, match=r"w\.asparam"):
        allspark.set_global_header("w.asparam")
    with pytest.raises(errors.NotSupported, match=r"w\.asparam"):
        allspark.save_allsparky_dltensor_tofile("w.asparam", "name", None, {})


def test_multimedia_can_be_named_but_not_filled() -> None:
    info = allspark.MultiMediaInfo()
    with pytest.raises(errors.NotSupported):
        info.set_multimedia_type(1)
    with pytest.raises(errors.NotSupported):
        info.add_multimedia_content("image", [])


def test_chatml_prompt() -> None:
    assert allspark.PromptTemplate.apply_chatml_template("Hi") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant \n"
    )
