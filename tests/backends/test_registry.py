import subprocess
import sys
from pathlib import Path

import pytest

from millstream.backends import registry
from millstream.errors import InvalidArgument, ModelFormatError, ModelNotFound, NotSupported


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_folder_with_configuration_is_for_torch(backend: str, folder: Path) -> None:
    assert registry.choose_backend(folder, backend).name == "torch"


@pytest.mark.parametrize("place", ["file", "upper", "folder"])
def test_gguf_needs_a_backend_that_is_not_there(place: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.GGUF" if place == "upper" else "model.gguf")
    path.touch()
    with pytest.raises(NotSupported, match="needs the llamacpp backend for GGUF files"):
        registry.choose_backend(tmp_path if place == "folder" else path)
    with pytest.raises(NotSupported, match="llamacpp"):
        registry.choose_backend(path, "llamacpp")


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
