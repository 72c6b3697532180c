"""Exported GGUF files: llama.cpp computes and tokenizes what the checkpoint means."""

import json
import random
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

import gguf

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.backends.bundled.facts import load_facts
from millstream.backends.bundled.making.evaluate import answer, load
from millstream.backends.bundled.phrasing import canonical_question
from millstream.backends.export.checkpoint import EXPORT_TYPES, export_gguf, main
from millstream.backends.export.tokenizer import PRE_TOKENIZERS
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.errors import InvalidArgument, ModelFormatError, ModelNotFound, NotSupported

from ..llamacpp.plain_llama import plain_llama
from ..llamacpp.small_tokenizers import TEXTS, save_byte_level, save_sentencepiece
from ..torch.checkpoints import save_checkpoint

VOCAB = 320
GPT2 = next(iter(PRE_TOKENIZERS))
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 300,
    "long_factor": [1.5, 2.0, 4.0, 8.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3],
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 20000.0, "factor": 4.0}
LIKENESS = {"f32": 0.99999, "f16": 0.9999, "bf16": 0.999, "q8_0": 0.99, "q4_0": 0.8}
"""Cosine of an export's logits with the checkpoint's; random weights make much of small differences."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cwm": ("cwm", {}),
    "ernie4_5": ("ernie4_5", {"use_bias": False}),
    "exaone4": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 8}),
    "gemma3-yarn": (
        "gemma3",
        {
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "gemma3-linear": (
        "gemma3",
        {
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "glm4": ("glm4", {}),
    "granite": ("granite", {}),
    "llama": ("llama", {}),
    "llama-mha": ("llama-mha", {}),
    "llama-bias": ("llama-bias", {}),
    "llama3-rope": ("llama3-rope", {}),
    "llama-linear": ("llama-linear", {}),
    "ministral": ("ministral", {}),
    "mistral": ("mistral", {}),
    "olmo2": ("olmo2", {}),
    "olmo2-tied": ("olmo2", {"tie_word_embeddings": True}),
    "olmo3": ("olmo3", {}),
    "phi3": ("phi3", {}),
    "phi3-partial": ("phi3-partial", {}),
    "phi3-longrope": (
        "phi3",
        {
            "sliding_window": None,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 300,
            "rope_parameters": LONGROPE,
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2-windows": ("qwen2-windows", {}),
    "qwen2-yarn": ("qwen2-yarn", {}),
    "llama-yarn-factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "qwen3": ("qwen3", {}),
    "seed_oss": ("seed_oss", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1], "num_hidden_layers": 5}),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small models are slower on several threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_checkpoint(case: str, folder: Path, **changes: Any) -> Any:
    """A tiny random checkpoint with a tokenizer; gives transformers' module."""
    family, values = CASES[case]
    save_byte_level(*GPT2, folder, VOCAB - 20)
    # transformers writes into the dicts that it is given.
    return save_checkpoint(family, folder, **deepcopy({"vocab_size": VOCAB, **values, **changes}))


def random_tokens(count: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(1))


def logits_of_both(reference: Any, file: Path, tokens: torch.Tensor, n_ctx: int = 256) -> list[torch.Tensor]:
    """Logits [tokens, vocabulary] of the exported file and of the checkpoint."""
    with torch.inference_mode():
        expected = reference(tokens[None]).logits[0]
    with plain_llama(file, n_ctx) as model:
        return [torch.from_numpy(model.logits(tokens.tolist())), expected]


@pytest.mark.parametrize("case", [case for case in CASES if case != "phi3-longrope"])
def test_logits_are_those_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    reference = make_checkpoint(case, tmp_path)
    exported = export_gguf(tmp_path, tmp_path / "m.gguf", "f32")
    tokens = random_tokens(min(40, exported.context_length))
    found, expected = logits_of_both(reference, exported.path, tokens)
    # llama.cpp takes the tanh form of GELU from a table of half-precision numbers.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 if "gemma" in case else 1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(("count", "n_ctx"), [(40, 256), (310, 512)])
def test_longrope_takes_its_factors_by_the_length_of_the_context(
    count: int, n_ctx: int, tmp_path: Path
) -> None:
    reference = make_checkpoint("phi3-longrope", tmp_path)
    exported = export_gguf(tmp_path, tmp_path / "m.gguf", "f32")
    found, expected = logits_of_both(reference, exported.path, random_tokens(count), n_ctx)
    # The other factors would be off by more than 1.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_windows_that_llama_cpp_does_not_know_end_the_context(tmp_path: Path) -> None:
    make_checkpoint("mistral", tmp_path)
    assert export_gguf(tmp_path, tmp_path / "m.gguf").context_length == 11


@pytest.mark.parametrize("kind", EXPORT_TYPES)
def test_types(kind: str, tmp_path: Path) -> None:
    reference = make_checkpoint(
        "llama", tmp_path, hidden_size=64, num_attention_heads=8, intermediate_size=96
    )
    exported = export_gguf(tmp_path, tmp_path / "m.gguf", kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(exported.path).tensors}
    assert types["blk.0.ffn_up.weight"] == kind.upper()
    assert types["token_embd.weight"] == ("Q8_0" if kind == "q4_0" else kind.upper())
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert exported.num_parameters == sum(parameter.numel() for parameter in reference.parameters())
    found, expected = logits_of_both(reference, exported.path, torch.arange(20))
    assert torch.cosine_similarity(found, expected, -1).mean() > LIKENESS[kind]


@pytest.mark.parametrize(("key", "name"), PRE_TOKENIZERS.items())
def test_byte_level_tokenizers(key: tuple[tuple[str, ...], bool], name: str, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path, vocab_size=700)
    tokenizer = save_byte_level(*key, tmp_path)
    check_tokenizer(tokenizer, tmp_path)


@pytest.mark.parametrize("blank_before", [True, False])
def test_sentencepiece_tokenizers(blank_before: bool, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path, vocab_size=700)
    tokenizer = save_sentencepiece(blank_before, tmp_path)
    check_tokenizer(tokenizer, tmp_path)


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    exported = export_gguf(folder, folder / "m.gguf")
    rng = random.Random(2)
    pieces = "".join(TEXTS)
    texts = TEXTS + ["".join(rng.choices(pieces, k=rng.randint(1, 30))) for _ in range(100)]
    with plain_llama(exported.path, vocab_only=True) as model:
        assert model.vocab_size == 700
        for text in texts:
            assert model.tokenize(text) == tokenizer.encode(text).ids, text


def test_ids_and_template_of_pyhelp() -> None:
    fields = gguf.GGUFReader(BUNDLED_MODELS["pyhelp-bf16"]).fields
    said = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    assert (said["eos_token_id"], said["eot_token_id"], said["padding_token_id"]) == (2, 0, 0)
    assert (said["add_bos_token"], said["add_eos_token"]) == (False, False)
    assert "bos_token_id" not in said
    assert said["tokenizer.chat_template"] == HFTokenizer.from_folder(PYHELP).chat_template


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_bundled_files_are_what_the_exporter_writes(kind: str, tmp_path: Path) -> None:
    exported = export_gguf(PYHELP, tmp_path / f"pyhelp-{kind}.gguf", kind)
    assert exported.path.read_bytes() == BUNDLED_MODELS[f"pyhelp-{kind}"].read_bytes()


def test_bundled_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in PYHELP.parent.rglob("*") if file.is_file()) < 40e6


def test_pyhelp_gives_the_same_text_from_both_files() -> None:
    facts = random.Random(5).sample(load_facts(), 100)
    chats = [[{"role": "user", "content": canonical_question(fact)}] for fact in facts]
    expected = answer(*load(PYHELP), chats)
    tokenizer = HFTokenizer.from_folder(PYHELP)
    prompts = [tokenizer.encode(tokenizer.apply_chat_template(c), add_special_tokens=False) for c in chats]
    with plain_llama(BUNDLED_MODELS["pyhelp-bf16"], n_ctx=512) as model:
        found = [tokenizer.decode(model.greedy(prompt, 320, (0, 2))) for prompt in prompts]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 95


UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {"query_pre_attn_scalar": 12}, "'gemma2' does not have this gemma2's attention scale"),
    ("llama", {"hidden_act": "gelu"}, "activation"),
    ("qwen2", {"head_dim": 16}, "width of its heads"),
    ("ernie4_5", {"use_bias": True}, "bias of the MLP"),
    ("gemma", {"tie_word_embeddings": False}, "untied head"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, "layers without rotary embedding"),
    ("qwen2", {"rope_parameters": {**YARN, "beta_fast": 16}}, "yarn's beta_fast"),
    ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
]


@pytest.mark.parametrize(("case", "changes", "message"), UNFIT)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    case: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_checkpoint(case, tmp_path, **changes)
    with pytest.raises(NotSupported, match=message):
        export_gguf(tmp_path, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_unknown_family_is_named(tmp_path: Path) -> None:
    save_checkpoint("helium", tmp_path)
    with pytest.raises(NotSupported, match="type 'helium' cannot be exported"):
        export_gguf(tmp_path, tmp_path / "m.gguf")


def test_rows_that_do_not_fit_blocks_are_refused(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    with pytest.raises(NotSupported, match=r"rows of 48 elements; q8_0 takes multiples of 32"):
        export_gguf(tmp_path, tmp_path / "m.gguf", "q8_0")


def test_values_too_large_for_f16_are_refused_and_nothing_stays(tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(NotSupported, match="too large for f16"):
        export_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.glob("*m.gguf*"))


def test_tokenizers_without_a_name_in_llama_cpp_are_refused(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    pipeline = json.loads((tmp_path / "tokenizer.json").read_text())
    pipeline["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    with pytest.raises(NotSupported, match="Whitespace"):
        export_gguf(tmp_path, tmp_path / "m.gguf")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "model", tmp_path / "m.gguf"
    shutil.copytree(PYHELP, folder)
    assert main([str(folder), str(out), "--type", "q8_0"]) == 0
    assert "llama, 5,770,496 parameters in 56 tensors" in capsys.readouterr().out
    assert main([str(folder), str(out)]) == 1
    assert "allowed: a new file ending in .gguf" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert main([str(folder), str(tmp_path / "n.gguf")]) == 1
    assert "has neither model.safetensors" in capsys.readouterr().err


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="type is 'q2_k'; allowed: bf16, f16, f32, q8_0, q4_0"):
        export_gguf(PYHELP, tmp_path / "m.gguf", "q2_k")
    with pytest.raises(InvalidArgument, match=r"ending in \.gguf"):
        export_gguf(PYHELP, tmp_path / "m.bin")
    with pytest.raises(ModelNotFound, match="there is no folder"):
        export_gguf(tmp_path / "none", tmp_path / "m.gguf")
    with pytest.raises(ModelFormatError, match=r"has no config\.json"):
        export_gguf(tmp_path, tmp_path / "m.gguf")
