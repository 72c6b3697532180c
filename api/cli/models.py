"""`millstream models`: the bundled models, and those in the hub's cache."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...backends.bundled import BUNDLED_MODELS
from ...backends.models.model_files import missing_files
from ...errors import ModelFormatError

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model whose files are on this machine."""

    name: str
    kind: str
    """Where it comes from: "bundled" or "hub cache"."""
    architecture: str
    """As its config.json says; "GGUF" for a GGUF file, "?" where neither is there."""
    num_bytes: int
    """Of its weight files."""
    path: Path
    missing: tuple[str, ...]
    """Files that would have to be downloaded before it can be used."""


class _Config(msgspec.Struct):
    architectures: list[str] = []


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `models`."""
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="the hub's cache, if not the usual one")


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    cache = options.cache_dir or default_cache()
    models = [*bundled_models(), *cached_models(cache)]
    for line in describe(models):
        print(line)
    if not any(model.kind == "hub cache" for model in models):
        print(f"nothing in the hub's cache {cache}")
    return 0


def default_cache() -> Path:
    """Where the hub's client keeps models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def bundled_models() -> Iterator[LocalModel]:
    """Models that ship inside the package."""
    for name, folder in BUNDLED_MODELS.items():
        yield _look("bundled", name, folder)


def cached_models(cache: Path) -> Iterator[LocalModel]:
    """Models in a cache of the hub's client, each at the snapshot that its main branch (or any) names."""
    for repository in sorted(cache.glob("models--*")):
        name = repository.name.removeprefix("models--").replace("--", "/")
        references = sorted((repository / "refs").glob("*"), key=lambda ref: (ref.name != "main", ref.name))
        commits = [reference.read_text(encoding="utf-8").strip() for reference in references]
        folders = [repository / "snapshots" / commit for commit in commits]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is not None:
            yield _look("hub cache", name, folder)


def describe(models: Sequence[LocalModel]) -> Iterator[str]:
    """A line for each model, under a line of titles."""
    rows = [("NAME", "FROM", "ARCHITECTURE", "SIZE", "PATH")]
    for model in models:
        size = f"{model.num_bytes / 1e6:,.1f} MB"
        note = f" (incomplete: {', '.join(model.missing)})" if model.missing else ""
        rows.append((model.name, model.kind, model.architecture, size, f"{model.path}{note}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [
            text.rjust(width) if column == 3 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join([*cells, row[4]])


def _look(kind: str, name: str, path: Path) -> LocalModel:
    """A model at a folder, or at a file that holds everything."""
    weights = {path} if path.is_file() else {file for pattern in _WEIGHTS for file in path.glob(pattern)}
    gguf = any(file.suffix == ".gguf" for file in weights)
    return LocalModel(
        name=name,
        kind=kind,
        architecture="GGUF" if gguf else _architecture(path / "config.json"),
        num_bytes=sum(file.stat().st_size for file in weights),
        path=path,
        missing=() if gguf else _missing(path),
    )


def _missing(folder: Path) -> tuple[str, ...]:
    try:
        return missing_files(folder)
    except ModelFormatError as error:
        return (str(error),)


def _architecture(config: Path) -> str:
    try:
        names = msgspec.json.decode(config.read_bytes(), type=_Config).architectures
    except (OSError, msgspec.DecodeError):
        return "?"
    return names[0] if names else "?"
