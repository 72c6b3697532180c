"""Which backend reads which model files. Backends are imported when one is first asked for."""

from pathlib import Path

from ..errors import InvalidArgument, ModelFormatError, ModelNotFound
from .models.discovery import locate
from .models.gguf_names import is_gguf
from .worker import Backend, ModelInfo

BACKENDS = ("torch", "llamacpp")
"""Names of the backends; "auto" chooses among them by the files."""


def choose_backend(path: Path, backend: str = "auto") -> Backend:
    """The backend called `backend`, or with "auto" the one that reads the files at `path`.

    Raises:
        InvalidArgument: there is no backend of that name.
        ModelNotFound: "auto", and there is nothing at `path`.
        ModelFormatError: "auto", and no backend reads such files.
    """
    if backend == "auto":
        backend = _backend_of(path)
    if backend == "torch":
        from .torch.backend import TorchBackend

        return TorchBackend()
    if backend == "llamacpp":
        from .llamacpp.backend import LlamaCppBackend

        return LlamaCppBackend()
    raise InvalidArgument("backend", backend, f"auto, {', '.join(BACKENDS)}")


def inspect_model(
    name: str, backend: str | Backend = "auto", revision: str | None = None, token: str | None = None
) -> tuple[Backend, ModelInfo]:
    """Find the model's files, downloading them if necessary, and read what they say; no weights.

    A backend that is an object, not a name, finds its models itself.

    Raises:
        ModelNotFound: nothing has that name.
        ModelFormatError: no backend reads the files.
        NotSupported: the package that the backend needs is not installed.
        InvalidArgument: there is no backend of that name.
    """
    if not isinstance(backend, str):
        return backend, backend.inspect(name, Path(name))
    if backend not in ("auto", *BACKENDS):
        raise InvalidArgument("backend", backend, f"auto, {', '.join(BACKENDS)}")
    path = locate(name, revision=revision, token=token)
    chosen = choose_backend(path, backend)
    return chosen, chosen.inspect(name, path)


def _backend_of(path: Path) -> str:
    if is_gguf(path.name) and path.is_file():
        return "llamacpp"
    if not path.exists():
        raise ModelNotFound(f"there is nothing at {path}")
    if (path / "config.json").is_file():
        return "torch"
    if path.is_dir() and any(is_gguf(file.name) for file in path.iterdir()):
        return "llamacpp"
    raise ModelFormatError(f"{path} is no model: it has neither config.json nor .gguf files")
