"""The Hugging Face hub: its cache, downloads from it, and why one did not work."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import Any

from ...errors import MillstreamError, ModelError, ModelFormatError, ModelNotFound
from ..bundled import BUNDLED_MODELS
from ..worker import Progress
from .model_files import HubModel

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 20.0
"""Seconds to wait for the hub's first answer."""
_TRUE = ("1", "ON", "YES", "TRUE")


def download(source: HubModel, token: str | None, cache: Path, progress: Progress | None) -> Path:
    """Fetch a model into the cache; its folder, or its first .gguf file.

    Raises:
        ModelNotFound, ModelFormatError, ModelError: see `locate`.
    """
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


def _explain(error: Exception, what: HubModel, cache: Path) -> MillstreamError:
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
            + suggestion(what.repo, cached_ids(cache))
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


def default_cache() -> Path:
    """The hub's cache, where HF_HUB_CACHE or HF_HOME say."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub.constants import ENDPOINT

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT


def offline_by_environment() -> bool:
    """Whether the environment switches the network off."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


def cached_snapshot(cache: Path, repo: str, revision: str | None) -> Path | None:
    """Snapshot folder of `repo` in the hub's cache, where refs/<revision> names a folder of snapshots/."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = revision or "main"
    reference = folder / "refs" / commit
    if not _COMMIT.fullmatch(commit) and reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def cached_ids(cache: Path) -> list[str]:
    """Repositories of which the cache has something."""
    return [path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")]


def suggestion(name: str, others: Iterable[str]) -> str:
    """The end of an error's sentence: what else the user may have meant."""
    bundled = sorted(BUNDLED_MODELS)
    close = get_close_matches(name, [*bundled, *others], n=3)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f" (bundled models: {', '.join(bundled)}){meant}"
