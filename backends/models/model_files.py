"""Which files a model consists of: in a folder, in a repository of the hub, in a copy of one."""

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from ...errors import ModelFormatError, ModelNotFound
from .gguf_names import GGUFModelName, choose_model, is_gguf, models_among, parts_of

_SHARD = re.compile(r"(.+-)(\d+)-of-(\d+)(\.\w+)")
_DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken")
_TOKENIZERS = ("tokenizer.json", "*.model", "*.spm", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt")
_MODULES = "modules.json"
"""sentence-transformers' list of what a text goes through behind the model, each in a folder of its own."""
_MODULE_FILE = re.compile(r"\d+_\w+/(config\.json|[^/]+\.safetensors)")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str = ""


def missing_files(folder: Path) -> tuple[str, ...]:
    """Names of files that a model folder, or a model in .gguf files, lacks; empty when it can be loaded."""
    if is_gguf(folder.name) and not folder.is_dir():
        return tuple(part for part in parts_of(folder.name) if not folder.with_name(part).is_file())
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    names = {path.name for path in folder.iterdir() if path.is_file()}
    index = next((folder / name for name in _INDEXES if name in names), None)
    if index is not None:
        try:
            expected = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
        except msgspec.DecodeError as error:
            raise ModelFormatError(f"{index} is no index of weight files: {error}") from error
    else:
        expected = _shard_names(names) or {"model.safetensors"}
    missing += sorted(expected - names)
    if not any(fnmatch(name, pattern) for name in names for pattern in _TOKENIZERS):
        missing.append("tokenizer.json")
    return (*missing, *_missing_modules(folder))


def files_to_fetch(names: Iterable[str]) -> tuple[str, ...]:
    """Which files of a hub repository a model consists of: descriptions, tokenizer and one set of weights.

    Only the top folder counts (other folders hold copies in other formats), but for named chat templates and
    the modules that make an embedding of a model's hidden states.
    Weights are safetensors, and pytorch_model*.bin only where there are none; "consolidated" files repeat
    the weights in another layout.

    Raises:
        ModelFormatError: there are no such weights.
    """
    names = sorted(names)
    top = [name for name in names if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    weights = tensors or [name for name in top if fnmatch(name, "pytorch_model*.bin")]
    if not weights:
        kinds = sorted(
            {Path(name).suffix for name in names if Path(name).suffix in (".gguf", ".pth", ".onnx")}
        )
        models = [model.quantisation or model.first for model in models_among(names)]
        raise ModelFormatError(
            "the repository has no .safetensors or pytorch_model.bin weights"
            + (f", only {', '.join(kinds)}" if kinds else "")
            + (f"; name one of its models behind a colon: {', '.join(models)}" if models else "")
        )
    unused = "pytorch_model*" if tensors else "*.safetensors*"
    described = [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in _DESCRIPTIONS)
        and ("/" not in name or fnmatch(name, "chat_templates/*.jinja"))
        and not fnmatch(name, unused)
    ]
    modules = [name for name in names if _MODULES in top and _MODULE_FILE.fullmatch(name)]
    return (*described, *modules, *weights)


def _missing_modules(folder: Path) -> list[str]:
    """Files that sentence-transformers' modules in a folder lack."""
    file = folder / _MODULES
    if not file.is_file():
        return []
    try:
        modules = msgspec.json.decode(file.read_bytes(), type=list[_Module])
    except msgspec.DecodeError as error:
        raise ModelFormatError(f"{file} is no list of modules: {error}") from error
    wanted = []
    for module in modules:
        if module.type.endswith((".Pooling", ".Dense")):
            wanted.append(f"{module.path}/config.json")
        if module.type.endswith(".Dense"):
            wanted.append(f"{module.path}/model.safetensors")
    return [name for name in wanted if not (folder / name).is_file()]


class HubModel(msgspec.Struct, frozen=True):
    """What is wanted of the hub: a repository, or one .gguf model of it."""

    repo: str
    revision: str | None
    wanted: str | None
    """A quantisation or the name of a .gguf file; None for safetensors."""

    def __str__(self) -> str:
        name = self.repo if self.wanted is None else f"{self.repo}:{self.wanted}"
        kind = "hub model" if "/" in name else "neither a folder nor a bundled model, and as a hub model it"
        shown = f"{kind} {name!r}" if "/" in name else f"{name!r} is {kind}"
        return shown if self.revision is None else f"{shown} at revision {self.revision!r}"

    def choose(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the repository's files that the model consists of.

        Raises:
            ModelFormatError: it has no weights that can be loaded, or `wanted` means several models.
            ModelNotFound: it has no .gguf model that is `wanted`.
        """
        if self.wanted is None:
            return files_to_fetch(names)
        present = set(names)
        parts = choose_model(present, self.wanted, self.repo).parts
        if not present.issuperset(parts):
            lacking = ", ".join(part for part in parts if part not in present)
            raise ModelFormatError(f"the repository lacks {lacking}")
        return parts

    def missing_files(self, snapshot: Path) -> tuple[str, ...]:
        """Names of files that the copy in the folder `snapshot` lacks."""
        if self.wanted is None:
            return missing_files(snapshot)
        found = self._cached_gguf(snapshot)
        if found is None:
            return (f"the .gguf file of {self.wanted}",)
        return tuple(part for part in found.parts if not (snapshot / part).is_file())

    def path_in(self, snapshot: Path) -> Path:
        """Where the model is in a folder that has all its files."""
        found = self._cached_gguf(snapshot)
        return snapshot if found is None else snapshot / found.first

    def _cached_gguf(self, snapshot: Path) -> GGUFModelName | None:
        if self.wanted is None:
            return None
        try:
            return choose_model(gguf_names_in(snapshot), self.wanted, self.repo)
        except (ModelFormatError, ModelNotFound):
            return None


def gguf_names_in(folder: Path) -> list[str]:
    """The .gguf files in a folder and the folders inside it, relative to it."""
    files = (path for path in folder.rglob("*") if is_gguf(path.name) and path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def _shard_names(names: set[str]) -> set[str]:
    """Weight files that belong to those in `names`, all shards of a numbered set included."""
    found = {name for name in names if name.endswith(".safetensors") or fnmatch(name, "pytorch_model*.bin")}
    for name in tuple(found):
        shard = _SHARD.fullmatch(name)
        if shard:
            stem, number, count, suffix = shard.groups()
            found |= {f"{stem}{i:0{len(number)}}-of-{count}{suffix}" for i in range(1, int(count) + 1)}
    return found
