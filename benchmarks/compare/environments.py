"""Installs the peers, each in a virtual environment of its own, and converts a random checkpoint for each.

python -m millstream.benchmarks.compare.environments --shape qwen2-0.5b FOLDER

FOLDER gets `environments/<name>` and `models/<shape>/<name>`; what is there already is left as it is.
Millstream's own environment is not touched. pip's settings are the user's; constraints.txt binds PyTorch.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...api.cli.terminal import CommandParser, command_status
from ...backends.export.checkpoint import export_gguf
from ...errors import InvalidArgument, MillstreamError
from ..known_shapes import SHAPES
from ..random_checkpoint import write_checkpoint

_ROOT = Path(__file__).resolve().parents[2]
_LAUNCH = Path(__file__).resolve().parent / "runners" / "launch.py"
_ERROR_LINES = 4
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment, and what is installed in it."""

    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    """Packages that others ask for, that are not needed and do not work with this PyTorch."""


ENVIRONMENTS = {
    "openvino": Environment(
        packages=("openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", _TORCH),
        unwanted=("torchvision",),
    ),
    "onnxruntime": Environment(
        packages=(
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.31.1",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "transformers==5.23.0",
            _TORCH,
        )
    ),
    "ctranslate2": Environment(packages=("ctranslate2==4.8.5", "transformers==5.23.0", _TORCH)),
    "dashinfer": Environment(
        packages=("dashinfer==1.3.0", "transformers==4.57.6", "accelerate==1.15.0", _TORCH)
    ),
}


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """How a model comes out of a checkpoint: `convert(folder of the shape, out)`."""

    environment: str | None
    """Virtual environment of the converter; None: Millstream's own."""
    convert: Callable[["Layout", Path], None]
    suffix: str = ""


class Layout:
    """Where the peers and the models of one shape lie in the folder that the user names."""

    def __init__(self, folder: Path, shape: str) -> None:
        if shape not in SHAPES:
            raise InvalidArgument("--shape", shape, ", ".join(SHAPES))
        self.shape = shape
        self.environments = folder.resolve() / "environments"
        self.models = folder.resolve() / "models" / shape

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that all other models are made of."""
        return self.model("checkpoint")

    def model(self, name: str) -> Path:
        """A converted model's file or folder."""
        return self.models / f"{name}{MODELS[name].suffix}"

    def python(self, environment: str | None) -> Path:
        """The interpreter of an environment."""
        if environment is None:
            return Path(sys.executable)
        return self.environments / environment / "bin" / "python"


def _write_checkpoint(layout: Layout, out: Path) -> None:
    write_checkpoint(out, SHAPES[layout.shape])


def _export(kind: str) -> Callable[[Layout, Path], None]:
    def convert(layout: Layout, out: Path) -> None:
        export_gguf(layout.checkpoint, out, kind)

    return convert


def _run_program(environment: str, *command: str) -> Callable[[Layout, Path], None]:
    """A converter among the programs of its environment; CHECKPOINT and OUT stand for the paths."""

    def convert(layout: Layout, out: Path) -> None:
        paths = {"CHECKPOINT": str(layout.checkpoint), "OUT": str(out)}
        program, *arguments = (paths.get(part, part) for part in command)
        _run([str(layout.python(environment).parent / program), *arguments])

    return convert


def _openvino(weights: str) -> ConvertedModel:
    task = "text-generation-with-past"
    flags = ("export", "openvino", "-m", "CHECKPOINT", "--task", task, "--weight-format", weights, "OUT")
    return ConvertedModel(environment="openvino", convert=_run_program("openvino", "optimum-cli", *flags))


def _build_onnx(layout: Layout, out: Path) -> None:
    flags = ["-m", str(layout.checkpoint), "-o", str(out), "-p", "int4", "-e", "cpu"]
    python = str(layout.python("onnxruntime"))
    _run([python, "-m", "onnxruntime_genai.models.builder", *flags, "-c", str(layout.models / "cache")])


def _convert_dashinfer(layout: Layout, out: Path) -> None:
    python = str(layout.python("dashinfer"))
    _run([python, "-P", str(_LAUNCH), "convert_dashinfer", str(layout.checkpoint), str(out)])


MODELS = {
    "checkpoint": ConvertedModel(environment=None, convert=_write_checkpoint),
    "gguf-bf16": ConvertedModel(environment=None, convert=_export("bf16"), suffix=".gguf"),
    "gguf-q8_0": ConvertedModel(environment=None, convert=_export("q8_0"), suffix=".gguf"),
    "gguf-q4_0": ConvertedModel(environment=None, convert=_export("q4_0"), suffix=".gguf"),
    "openvino-int8": _openvino("int8"),
    "openvino-fp16": _openvino("fp16"),
    "onnxruntime-int4": ConvertedModel(environment="onnxruntime", convert=_build_onnx),
    "ctranslate2-int8": ConvertedModel(
        environment="ctranslate2",
        convert=_run_program(
            "ctranslate2",
            *("ct2-transformers-converter", "--model", "CHECKPOINT", "--output_dir", "OUT"),
            *("--quantization", "int8"),
        ),
    ),
    "dashinfer": ConvertedModel(environment="dashinfer", convert=_convert_dashinfer),
}


def install(layout: Layout, name: str) -> None:
    """Make a virtual environment with its packages, unless it is there.

    Raises:
        MillstreamError: pip failed; nothing is left behind.
    """
    python = layout.python(name)
    if python.exists():
        return
    environment, home = ENVIRONMENTS[name], python.parent.parent
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", str(home)])
        _run([*pip, "install", "-q", "-c", str(_ROOT / "constraints.txt"), *environment.packages])
        if environment.unwanted:
            _run([*pip, "uninstall", "-q", "-y", *environment.unwanted])
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def convert(layout: Layout, name: str) -> None:
    """Make a model for a peer, unless it is there.

    Raises:
        MillstreamError: the converter failed; nothing is left behind.
    """
    out = layout.model(name)
    if out.exists():
        return
    layout.models.mkdir(parents=True, exist_ok=True)
    part = layout.models / f"unfinished-{out.name}"
    _remove(part)
    try:
        MODELS[name].convert(layout, part)
        part.rename(out)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> None:
    """Run a program that asks no hub for anything."""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = " / ".join(lines[-_ERROR_LINES:])
        raise MillstreamError(f"{Path(command[0]).name} ended with {done.returncode}: {said}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.compare.environments",
        description="Install the peers and convert a random checkpoint for each of them.",
    )
    parser.add_argument("folder", type=Path, help="where environments and models are kept")
    parser.add_argument("--shape", default="qwen2-0.5b", metavar="NAME", help="see benchmarks.shapes --list")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*ENVIRONMENTS, "millstream"],
        default=[*ENVIRONMENTS, "millstream"],
        metavar="NAME",
        help=f"environments to make, with the models of their peers: {', '.join(ENVIRONMENTS)}, or "
        "millstream (no environment, but the checkpoint and the GGUF files)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    layout = Layout(options.folder, options.shape)
    convert(layout, "checkpoint")
    failed = False
    for environment in options.only:
        name = None if environment == "millstream" else environment
        steps: list[tuple[str, Callable[[Layout, str], None], str]] = []
        if name is not None:
            steps.append((f"environment {name}", install, name))
        steps += [
            (f"model {model}", convert, model) for model, how in MODELS.items() if how.environment == name
        ]
        for what, act, subject in steps:
            print(f"{what} ...", end=" ", flush=True)
            try:
                act(layout, subject)
                print("ready")
            except MillstreamError as error:
                print(f"failed: {error}")
                failed = True
                break
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
