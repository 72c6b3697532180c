"""The wheel and the source distribution that `make wheel` has built: their files, and a user's first request.

MILLSTREAM_DIST names their folder.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIST = Path(os.environ.get("MILLSTREAM_DIST", "missing"))
needs_wheel = pytest.mark.skipif(
    "MILLSTREAM_DIST" not in os.environ, reason="`make wheel` builds what is tested here"
)


def test_readme_and_constraints_name_one_torch():
    (constrained,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(re.findall(r"torch==(\S+)", (ROOT / "README.md").read_text())) == {f"{constrained}+cpu"}


@pytest.fixture(scope="module")
def wheel() -> Path:
    (found,) = DIST.glob("*.whl")
    return found


@needs_wheel
def test_the_wheel_runs_on_more_than_this_machine(wheel):
    if sys.platform == "linux":
        assert re.search(r"-manylinux_2_\d+_", wheel.name)


@needs_wheel
def test_the_wheel_has_what_runs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {name.rpartition("/")[0] for name in names}
    assert {
        "millstream/backends/bundled/pyhelp/model.safetensors",
        "millstream/api/server/static/app.js",
    } <= names
    assert {"millstream/py.typed", "millstream/version.py"} <= names
    assert any(re.search(r"native/_kernels.*\.so$", name) for name in names)
    assert not {name for name in names if name.startswith("millstream/tests")}
    assert not {folder for folder in folders if folder.endswith(("/making", "/csrc"))}
    assert not {name for name in names if "libgomp" in name}


@needs_wheel
def test_the_source_distribution_can_be_built_elsewhere():
    (path,) = DIST.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "backends/native/csrc").iterdir()}
    assert {"constraints.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", *sources} <= names
    assert not {name for name in names if name.startswith("tests/")}


@needs_wheel
@pytest.mark.slow
def test_an_empty_environment_answers_a_request(wheel, tmp_path):
    """As README says, but for the index: constraints.txt names a torch that has a build for CPUs alone."""
    python = tmp_path / "venv/bin/python"
    run = {"cwd": tmp_path, "check": True, "text": True, "stdout": subprocess.PIPE}
    run["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], **run)
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], **run)
    packages = subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], **run).stdout
    assert re.search(r"^millstream==", packages, re.MULTILINE)
    assert not re.search(r"^(nvidia-(?!ml-py)|triton)", packages, re.MULTILINE)
    question = "What does os.path.join do?"
    generate = [tmp_path / "venv/bin/millstream", "generate", "--temperature", "0", question]
    answer = subprocess.run(generate, **run).stdout
    assert "Join two or more pathname components" in answer
    doctor = subprocess.run([tmp_path / "venv/bin/millstream", "doctor"], **run).stdout
    assert "not built" not in doctor
