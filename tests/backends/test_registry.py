import subprocess
import sys
from pathlib import Path

import pytest

from millstream.backends import registry
from millstream.backends.bundled import BUNDLED_MODELS
from millstream.errors import InvalidArgument, ModelFormatError, ModelNotFound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.torch
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_folder_with_configuration_is_for_torch(backend: str, folder: Path) -> None:
    assert registry.choose_backend(folder, backend).name == "torch"


@pytest.mark.parametrize("place", ["file", "upper", "folder"])
def test_gguf_is_for_llamacpp(place: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.GGUF" if place == "upper" else "model.gguf")
    path.touch()
    assert registry.choose_backend(tmp_path if place == "folder" else path).name == "llamacpp"
    assert registry.choose_backend(path, "llamacpp").name == "llamacpp"


@pytest.mark.torch
def test_configuration_goes_before_gguf_files(folder: Path) -> None:
    (folder / "model.gguf").touch()
    assert registry.choose_backend(folder).name == "torch"


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(BUNDLED_MODELS))
def test_bundled_models_have_a_backend(name: str) -> None:
    expected = "llamacpp" if BUNDLED_MODELS[name].suffix == ".gguf" else "torch"
    assert registry.choose_backend(BUNDLED_MODELS[name]).name == expected


def test_gguf_without_llama_cpp_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from millstream.backends import registry\n"
        "from millstream.errors import NotSupported\n"
        "try: registry.inspect_model(sys.argv[1])\n"
        "except NotSupported as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.gguf")], capture_output=True, text=True, check=True
    )
    assert "pip install llama-cpp-python gguf" in done.stdout


def test_unknown_backend_lists_the_names(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="backend is 'tensorflow'; allowed: auto, torch, llamacpp"):
        registry.choose_backend(folder, "tensorflow")
    with pytest.raises(InvalidArgument, match="allowed: auto, torch"):
        registry.inspect_model("no-such/model", backend="tensorflow")


def test_files_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"neither config\.json nor \.gguf"):
        registry.choose_backend(tmp_path)
    with pytest.raises(ModelNotFound, match="there is nothing at"):
        registry.choose_backend(tmp_path / "absent.gguf")


@pytest.mark.torch
def test_damaged_model_is_named_by_its_backend(folder: Path) -> None:
    with pytest.raises(ModelFormatError):
        registry.inspect_model(str(folder))


def test_torch_is_not_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from millstream.backends import registry\n"
        "from millstream.errors import MillstreamError\n"
        "for name in ('auto', 'other'):\n"
        "    try: registry.choose_backend(pathlib.Path(sys.argv[1]), name)\n"
        "    except MillstreamError: pass\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
