"""What `models` finds."""

import re
from pathlib import Path

import pytest

from millstream.api.cli.main import main
from millstream.api.cli.models import cached_models, describe


def cached(cache: Path, name: str, commit: str = "c0ffee", reference: str = "main") -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / reference).write_text(commit)
    return folder


def test_models_of_the_cache(tmp_path: Path) -> None:
    folder = cached(tmp_path, "org/whole")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    part = cached(tmp_path, "org/part")
    (part / "config.json").write_text("not JSON")
    (cached(tmp_path, "org/quant") / "q.gguf").write_bytes(b"x" * 10)
    (tmp_path / "models--org--empty").mkdir()
    (tmp_path / "datasets--org--data").mkdir()

    models = {model.name: model for model in cached_models(tmp_path)}
    assert models.keys() == {"org/whole", "org/part", "org/quant"}
    assert models["org/whole"].architecture == "LlamaForCausalLM"
    assert models["org/whole"].num_bytes == 1000
    assert models["org/whole"].path == folder
    assert models["org/whole"].missing == ()
    assert models["org/part"].architecture == "?"
    assert "model.safetensors" in models["org/part"].missing
    assert (models["org/quant"].architecture, models["org/quant"].missing) == ("GGUF", ())
    assert any("incomplete: " in line for line in describe(list(models.values())))


def test_main_goes_before_other_branches(tmp_path: Path) -> None:
    cached(tmp_path, "org/m", "aaa", "a-branch")
    folder = cached(tmp_path, "org/m", "bbb", "main")
    assert [model.path for model in cached_models(tmp_path)] == [folder]


def test_the_command_shows_the_bundled_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "--cache-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^pyhelp +bundled +LlamaForCausalLM +11.5 MB", printed, re.MULTILINE)
    assert re.search(r"^pyhelp-bf16 +bundled +GGUF +11.7 MB", printed, re.MULTILINE)
    assert str(tmp_path) in printed
