"""From a model's name to its files: a folder, a bundled model, or a repository of the Hugging Face hub."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidArgument, MillstreamError, ModelError, ModelFormatError, ModelNotFound
from .bundled import BUNDLED_MODELS
from .gguf_names import GGUFModelName, choose_model, is_gguf, models_among, parts_of
from .worker import Progress

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.+-)(\d+)-of-(\d+)(\.\w+)")
_DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.spm", "*.tiktoken")
_TOKENIZERS = ("tokenizer.json", "*.model", "*.spm", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TIMEOUT = 20.0
"""Seconds to wait for the hub's first answer."""
_TRUE = ("1", "ON", "YES", "TRUE")


def locate(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Folder (or .gguf file) of the model called `name`, downloaded first where necessary.

    A bundled name goes before a path, and a path before a hub id. A complete copy in the hub's cache is used
    without asking the hub for a newer one. "folder:Q4_K_M" and "owner/name:Q4_K_M" mean the .gguf file of
    that quantisation; in place of the quantisation, the file's name can stand. Of a model in several .gguf
    files, the first one is given back.

    Args:
        revision: branch, tag or commit of a hub id; its main branch by default.
        token: for private and gated hub ids; by default HF_TOKEN or the stored login.
        cache_dir: the hub's cache; by default where HF_HUB_CACHE or HF_HOME say.
        offline: never use the network; by default what HF_HUB_OFFLINE says.
        progress: told how much of a download is done.

    Raises:
        ModelNotFound: nothing has that name, or it cannot be fetched; says what would help.
        ModelFormatError: the hub's repository, or the file, is of a kind that no backend reads.
        ModelError: the download was broken off, for example because the disk is full.
        InvalidArgument: `name` is empty, or a revision is given for something that has none.
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgument("model", name, "a folder, a hub id or a bundled name")
    local = _local(name)
    if local is not None:
        if revision is not None:
            raise InvalidArgument("revision", revision, f"None, because {name!r} is not a hub id")
        return local
    repo, _, wanted = name.partition(":")
    if not _HUB_ID.fullmatch(repo) or "--" in name or ".." in name or name.endswith(":"):
        raise ModelNotFound(f"there is no folder or .gguf file {name!r}{_suggestion(name, _siblings(name))}")

    source = _HubModel(repo, revision, wanted or None)
    cache = _default_cache() if cache_dir is None else Path(cache_dir).expanduser()
    snapshot = _cached_snapshot(cache, repo, revision)
    missing = source.missing_files(snapshot) if snapshot is not None else ()
    if snapshot is not None and not missing:
        return source.path_in(snapshot)
    if _offline_by_environment() if offline is None else offline:
        where = f"only partly in the cache {cache} (missing: {', '.join(missing)})"
        raise ModelNotFound(
            f"{source} is {where if missing else f'not in the cache {cache}'}, and the "
            "network is switched off: give a path, or switch it on (HF_HUB_OFFLINE=0) to download it"
            + _suggestion(name, _cached_ids(cache))
        )
    return _download(source, token, cache, progress)


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
    return tuple(missing)


def files_to_fetch(names: Iterable[str]) -> tuple[str, ...]:
    """Which files of a hub repository a model consists of: descriptions, tokenizer and one set of weights.

    Only the top folder counts (other folders hold copies in other formats), but for named chat templates.
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
    return (*described, *weights)


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class _HubModel(msgspec.Struct, frozen=True):
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
            return choose_model(_gguf_names(snapshot), self.wanted, self.repo)
        except (ModelFormatError, ModelNotFound):
            return None


def _gguf_names(folder: Path) -> list[str]:
    """The .gguf files in a folder and the folders inside it, relative to it."""
    files = (path for path in folder.rglob("*") if is_gguf(path.name) and path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def _local(name: str) -> Path | None:
    """The bundled model, folder or .gguf file of that name; None where there is none."""
    if name in BUNDLED_MODELS:
        return BUNDLED_MODELS[name]
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelFormatError(f"{path} is neither a folder nor a .gguf file")
        return path
    folder, _, wanted = name.rpartition(":")
    path = Path(os.path.expanduser(folder))
    if folder and wanted and path.is_dir():
        return path / choose_model(_gguf_names(path), wanted, folder).first
    return None


def _shard_names(names: set[str]) -> set[str]:
    """Weight files that belong to those in `names`, all shards of a numbered set included."""
    found = {name for name in names if name.endswith(".safetensors") or fnmatch(name, "pytorch_model*.bin")}
    for name in tuple(found):
        shard = _SHARD.fullmatch(name)
        if shard:
            stem, number, count, suffix = shard.groups()
            found |= {f"{stem}{i:0{len(number)}}-of-{count}{suffix}" for i in range(1, int(count) + 1)}
    return found


def _default_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT


def _offline_by_environment() -> bool:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


def _cached_snapshot(cache: Path, repo: str, revision: str | None) -> Path | None:
    """Snapshot folder of `repo` in the hub's cache, where refs/<revision> names a folder of snapshots/."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = revision or "main"
    reference = folder / "refs" / commit
    if not _COMMIT.fullmatch(commit) and reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _cached_ids(cache: Path) -> list[str]:
    return [path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")]


def _siblings(name: str) -> list[str]:
    """Paths beside the one that was not found, written the way it was."""
    head, _, _ = name.rpartition("/")
    parent = Path(os.path.expanduser(head or ("/" if name.startswith("/") else ".")))
    if not parent.is_dir():
        return []
    return [f"{head}/{path.name}" for path in parent.iterdir() if path.is_dir() or path.suffix == ".gguf"]


def _suggestion(name: str, others: Iterable[str]) -> str:
    """The end of an error's sentence: what else the user may have meant."""
    bundled = sorted(BUNDLED_MODELS)
    close = get_close_matches(name, [*bundled, *others], n=3)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f" (bundled models: {', '.join(bundled)}){meant}"


def _download(source: _HubModel, token: str | None, cache: Path, progress: Progress | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    endpoint = _endpoint()
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(
            source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = source.choose(sizes)
        bar = None if progress is None else _progress_bar(progress, sum(sizes[name] for name in wanted))
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            token=token,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=[escape(name) for name in wanted],
            tqdm_class=bar,
        )
    except (ModelFormatError, ModelNotFound) as error:
        raise type(error)(f"hub model {source.repo!r}: {error}") from error
    except Exception as error:  # the hub's client passes on errors of its HTTP library, which varies
        raise _explain(error, source, cache) from error
    return Path(folder) if source.wanted is None else Path(folder) / wanted[0]


def _explain(error: Exception, what: _HubModel, cache: Path) -> MillstreamError:
    """One sentence for whatever kept the hub's client from fetching a model."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{_endpoint()}/{what.repo}"
    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"{what} is gated: accept its terms at {page} and give a token (token or HF_TOKEN)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"{what} does not exist on the hub, or is private and needs a token (token or HF_TOKEN)"
            + _suggestion(what.repo, _cached_ids(cache))
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{what} does not exist, but the repository does: see the branches at {page}")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return ModelNotFound(f"{what} cannot be read with this token: the hub answered {status}")
        return ModelNotFound(f"{what} cannot be fetched now: the hub answered {status}; try again later")
    if isinstance(error, OfflineModeIsEnabled):
        return ModelNotFound(f"{what} is not in the cache {cache}, and HF_HUB_OFFLINE was set at start-up")
    broken_off = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    if broken_off or isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        return ModelNotFound(
            f"{what} is not in the cache {cache}, and the hub cannot be reached ({error}): "
            "give a path, or check the network and HF_ENDPOINT"
        )
    return ModelError(f"downloading {what} to {cache} failed: {type(error).__name__}: {error}")


def _progress_bar(progress: Progress, total: int) -> Any:
    """The hub's progress bar class, which also tells `progress` the share of `total` bytes that is here."""
    from huggingface_hub.utils.tqdm import tqdm

    counts: dict[int, float] = {}
    """Bytes by bar: newer clients show the same bytes in two bars, so the furthest one counts."""

    class ReportingBar(tqdm):
        """Counts by itself, because a bar that is not shown does not."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            self._has_bytes = options.get("unit") == "B"
            if self._has_bytes:
                counts[id(self)] = options.get("initial") or 0

        def update(self, n: float | None = 1) -> bool | None:
            if self._has_bytes:
                counts[id(self)] += n or 0
                progress("download", min(max(counts.values()) / max(total, 1), 1.0))
            shown: bool | None = super().update(n)
            return shown

    return ReportingBar
