"""From a model's name to its files: a folder, a bundled model, or a repository of the Hugging Face hub."""

import os
import re
from pathlib import Path

from ...errors import InvalidArgument, ModelFormatError, ModelNotFound
from ..bundled import BUNDLED_MODELS
from ..worker import Progress
from .gguf_names import choose_model
from .hub import cached_ids, cached_snapshot, default_cache, download, offline_by_environment, suggestion
from .model_files import HubModel, gguf_names_in

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
        raise ModelNotFound(f"there is no folder or .gguf file {name!r}{suggestion(name, _siblings(name))}")

    source = HubModel(repo, revision, wanted or None)
    cache = default_cache() if cache_dir is None else Path(cache_dir).expanduser()
    snapshot = cached_snapshot(cache, repo, revision)
    missing = source.missing_files(snapshot) if snapshot is not None else ()
    if snapshot is not None and not missing:
        return source.path_in(snapshot)
    if offline_by_environment() if offline is None else offline:
        where = f"only partly in the cache {cache} (missing: {', '.join(missing)})"
        raise ModelNotFound(
            f"{source} is {where if missing else f'not in the cache {cache}'}, and the "
            "network is switched off: give a path, or switch it on (HF_HUB_OFFLINE=0) to download it"
            + suggestion(name, cached_ids(cache))
        )
    return download(source, token, cache, progress)


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
        return path / choose_model(gguf_names_in(path), wanted, folder).first
    return None


def _siblings(name: str) -> list[str]:
    """Paths beside the one that was not found, written the way it was."""
    head, _, _ = name.rpartition("/")
    parent = Path(os.path.expanduser(head or ("/" if name.startswith("/") else ".")))
    if not parent.is_dir():
        return []
    return [f"{head}/{path.name}" for path in parent.iterdir() if path.is_dir() or path.suffix == ".gguf"]
