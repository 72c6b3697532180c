"""Exported adapters: llama.cpp computes with them what torch computes with them merged."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

from millstream.backends.export.adapter import export_adapter, main
from millstream.backends.export.checkpoint import export_gguf
from millstream.backends.gguf.model_file import read_model
from millstream.backends.llamacpp.adapter_file import check_adapter
from millstream.errors import InvalidArgument, ModelFormatError, ModelNotFound, NotSupported

from ..llamacpp.plain_llama import plain_llama
from ..llamacpp.small_adapters import linear_shapes, merge, save_peft
from .test_checkpoint import make_checkpoint, random_tokens

FAMILIES = ["llama", "llama-mha", "ernie4_5", "gemma2", "glm4", "granite", "olmo2", "phi3", "qwen2", "qwen3"]
VARIANTS = {
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"k_proj": 5}, "alpha_pattern": {"layers.1.self_attn.k_proj": 11}},
    "nothing": {"lora_alpha": 0},
}


def check_logits(case: str, folder: Path, scale: float = 1.0, head: bool = False, **said) -> None:
    module = make_checkpoint(case, folder)
    base = export_gguf(folder, folder / "m.gguf", "f32").path
    shapes = linear_shapes(module)
    if head:
        shapes = {"lm_head.weight": tuple(module.lm_head.weight.shape)}
    added = save_peft(folder / "adapter", shapes, **said)
    done = export_adapter(folder, folder / "adapter", folder / "a.gguf")
    assert done.num_matrices == len(shapes)
    assert check_adapter(done.path, read_model(base), None) == done.rank
    tokens = random_tokens(10)
    with torch.inference_mode():
        plain = module(tokens[None]).logits[0]
        merge(module, added, scale)
        expected = module(tokens[None]).logits[0]
    with plain_llama(base) as model:
        model.adapt(done.path, scale)
        found = torch.from_numpy(model.logits(tokens.tolist()))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-3 if "gemma" in case else 3e-4)
    assert said.get("lora_alpha") == 0 or (expected - plain).abs().max() > 0.1


@pytest.mark.parametrize("case", FAMILIES)
def test_logits_are_those_of_the_merged_checkpoint(case: str, tmp_path: Path) -> None:
    check_logits(case, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_and_alphas_of_all_kinds(variant: str, tmp_path: Path) -> None:
    check_logits("llama", tmp_path, **VARIANTS[variant])


def test_scale_multiplies_what_is_added(tmp_path: Path) -> None:
    check_logits("llama", tmp_path, scale=-0.7)


def test_the_head_may_be_changed(tmp_path: Path) -> None:
    check_logits("llama", tmp_path, head=True)


REFUSED = {
    "dora": ({"use_dora": True}, NotSupported, "use_dora = true, which llama.cpp's adapters do not have"),
    "bias": ({"bias": "all"}, NotSupported, 'bias = "all"'),
    "whole modules": ({"modules_to_save": ["lm_head"]}, NotSupported, r'modules_to_save = \["lm_head"\]'),
    "activated": ({"alora_invocation_tokens": [3]}, NotSupported, "alora_invocation_tokens"),
    "other method": ({"peft_type": "IA3"}, NotSupported, "type 'IA3'; only 'LORA'"),
    "no alpha": ({"lora_alpha": "x"}, ModelFormatError, "is not the configuration of an adapter"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint("llama", folder)
    return folder


QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_llama_cpp_does_not_have_are_named(case: str, checkpoint: Path, tmp_path: Path) -> None:
    said, error, message = REFUSED[case]
    save_peft(tmp_path / "a", {QUERY: (48, 48)}, **said)
    with pytest.raises(error, match=message):
        export_adapter(checkpoint, tmp_path / "a", tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("name", "shape", "error", "message"),
    [
        (
            QUERY,
            (48, 40),
            ModelFormatError,
            r"shapes \[4, 40\] and \[48, 4\] for .*q_proj, which is \[48, 48\]",
        ),
        (
            "model.layers.7.mlp.up_proj.weight",
            (80, 48),
            NotSupported,
            "layers.7.mlp.up_proj, which is no layer",
        ),
        ("model.embed_tokens.weight", (320, 48), NotSupported, "model.embed_tokens, which is no layer"),
    ],
)
def test_matrices_that_do_not_fit_are_named(
    name: str, shape: tuple[int, int], error: type, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    save_peft(tmp_path / "a", {name: shape})
    with pytest.raises(error, match=message):
        export_adapter(checkpoint, tmp_path / "a", tmp_path / "a.gguf")


def test_damaged_folders_are_named(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "a", tmp_path / "a.gguf"

    def refused(error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            export_adapter(checkpoint, folder, out)

    refused(ModelNotFound, "there is no folder")
    save_peft(folder, {QUERY: (48, 48)})
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = f"base_model.model.{QUERY.removesuffix('.weight')}"
    save_file({f"{name}.lora_A.weight": tensors[f"{name}.lora_A.weight"]}, weights)
    refused(ModelFormatError, "the other half of tensor .*lora_A.weight is missing")
    save_file({**tensors, f"{name}.lora_magnitude_vector": torch.ones(3)}, weights)
    refused(NotSupported, "has the tensor .*lora_magnitude_vector; only pairs of low rank")
    save_file({key: tensor.int() for key, tensor in tensors.items()}, weights)
    refused(ModelFormatError, "tensors of type I32; allowed: BF16")
    save_file({}, weights)
    refused(ModelFormatError, "has no tensors")
    weights.write_bytes(b"12345678")
    refused(ModelFormatError, "truncated or damaged")
    weights.unlink()
    refused(ModelFormatError, "has no adapter_model.safetensors")
    (folder / "adapter_config.json").unlink()
    refused(ModelFormatError, "has no adapter_config.json")
    with pytest.raises(InvalidArgument, match=r"ending in \.gguf"):
        export_adapter(checkpoint, folder, tmp_path / "a.bin")
    assert not out.exists()


def test_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_peft(tmp_path / "a", {QUERY: (48, 48)}, lora_alpha=8)
    arguments = [str(checkpoint), str(tmp_path / "a"), str(tmp_path / "a.gguf")]
    assert main(arguments) == 0
    assert "llama, rank 4, 384 parameters for 1 matrices" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "allowed: a new file ending in .gguf" in capsys.readouterr().err
