"""ModelSource: the files a loader stands for, and what they say."""

from pathlib import Path
from typing import Any

import msgspec

from ..backends.registry import inspect_model
from ..backends.text.auto_tokenizer import load_auto_tokenizer
from ..backends.worker import Backend, ModelInfo
from ..errors import ModelFormatError


class ModelSource:
    """A folder, file, hub id or bundled name; found, or downloaded, when it is first asked about.

    Every method raises what `backends.registry.inspect_model` raises.
    """

    def __init__(self, name: str, backend: str | Backend) -> None:
        self.name = name
        self.backend = backend
        self._found: tuple[Backend, ModelInfo] | None = None

    @property
    def info(self) -> ModelInfo:
        """What the backend reads of it."""
        return self._find()[1]

    @property
    def path(self) -> Path:
        """Its folder, or its file."""
        return self.info.path

    def config(self) -> dict[str, Any]:
        """Content of config.json; empty where there is none."""
        return _read_json(self.path / "config.json")

    def described(self) -> dict[str, Any]:
        """config.json, over what the backend knows."""
        info = self.info
        known: dict[str, Any] = {
            "architectures": [info.architecture],
            "vocab_size": info.vocab_size,
            "max_position_embeddings": info.max_length,
            "eos_token_id": info.eos_token_ids[0] if info.eos_token_ids else None,
        }
        return {**known, **self.config()}

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or what the backend knows; with the end-of-sequence ids in any case."""
        info = self.info
        said = _read_json(info.path / "generation_config.json") or dict(info.generation_defaults)
        if said.get("eos_token_id") is None and info.eos_token_ids:
            said["eos_token_id"] = (
                list(info.eos_token_ids) if info.eos_token_ids[1:] else info.eos_token_ids[0]
            )
        return said

    def load_tokenizer(self, *, padding_side: str, trust_remote_code: bool) -> Any:
        """transformers' tokenizer of a folder; the backend's own of a file.

        Raises:
            ModelFormatError: there is none.
        """
        backend, info = self._find()
        if not info.path.is_dir():
            return backend.load_tokenizer(info)
        return load_auto_tokenizer(info.path, padding_side=padding_side, trust_remote_code=trust_remote_code)

    def _find(self) -> tuple[Backend, ModelInfo]:
        if self._found is None:
            self._found = inspect_model(self.name, self.backend)
        return self._found


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{path} is no JSON object: {error}") from error
