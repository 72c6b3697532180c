"""DashInferModel: a model that `serialize_to_path` wrote, with the configurations in its YAML file."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import msgspec

from ..backends.text.auto_tokenizer import load_auto_tokenizer
from ..errors import NotSupported
from .generation_config import ASGenerationConfigBuilder
from .llm import LLM
from .model_config import AsModelConfig
from .native import AsEngine
from .runtime_config import AsModelRuntimeConfigBuilder
from .serialized import paths_of


class ConfigFieldMissingError(ValueError):
    """A YAML file lacks a section."""

    def __init__(self, field: str, config_dict: dict[str, Any]) -> None:
        super().__init__(f"the configuration has no section {field!r}; it has {sorted(config_dict)}")


class DashInferModel(LLM):
    """The model called `pretrain_model_name` in the folder `pretrain_model_name_or_path`."""

    config_name = "dimodel_config.yaml"

    def __init__(
        self,
        pretrain_model_name_or_path: str | os.PathLike[str],
        pretrain_model_name: str = "model",
        config_file_path: str | os.PathLike[str] | None = None,
        config_content: str | None = None,
    ) -> None:
        """Read the configurations: `config_content`, else `config_file_path`, else the file beside the model.

        Raises:
            ValueError: there is no such file, or it is no YAML.
            ConfigFieldMissingError: a section is missing.
        """
        self.di_model_path = os.fspath(pretrain_model_name_or_path)
        self.safe_model_name = pretrain_model_name.replace("/", "_")
        self.tokenizer: Any = None
        self._graph, self._folder = paths_of(self.di_model_path, self.safe_model_name)
        if config_content is None:
            config_content = self._read_file(config_file_path)
        self.di_model_config = _parse(config_content)
        for section in ("model", "runtime_config", "generation_config"):
            if not isinstance(self.di_model_config.get(section), dict):
                raise ConfigFieldMissingError(section, self.di_model_config)
        self._runtime = AsModelRuntimeConfigBuilder().from_dict(self.di_model_config["runtime_config"])
        if self._graph.is_file():
            self._runtime.model_dir(self.di_model_path, self.safe_model_name)

    def load_model(self) -> Self:
        """Nothing is to be done: the engine reads the weights."""
        return self

    def read_model_config(self) -> Self:
        """Nothing is to be done: the constructor has read it."""
        return self

    def get_model_config(self) -> dict[str, Any]:
        """The section `model`."""
        return dict(self.di_model_config["model"])

    def get_model_context_length(self) -> int:
        """Longest sequence the model was made for, in tokens.

        Raises:
            ConfigFieldMissingError: the section `model` does not say.
        """
        length = self.di_model_config["model"].get("max_position_embeddings")
        if not isinstance(length, int):
            raise ConfigFieldMissingError("max_position_embeddings", self.di_model_config["model"])
        return length

    def init_quantization(self, enable: bool = True, customized_quant_config: Any = None) -> Self:
        """Raises NotSupported, unless `enable` is False."""
        if enable:
            raise NotSupported("a model that is written already cannot be quantised; allowed: enable False")
        return self

    def init_tokenizer(self, padding_side: str = "left") -> Self:
        """Load transformers' tokenizer, once, from the section `tokenizer` or from the model's own folder."""
        if self.tokenizer is None:
            section = self.di_model_config.get("tokenizer") or {}
            local = section.get("local_path") or self._folder
            self.tokenizer = load_auto_tokenizer(Path(local), padding_side=padding_side)
        return self

    def get_tokenizer(self) -> Any:
        """The tokenizer; None before `init_tokenizer`."""
        return self.tokenizer

    def initialised_tokenizer(self) -> Any:
        """The tokenizer, if it was initialised; the engine's own gives the same ids, much sooner."""
        return self.tokenizer

    def create_reference_generation_config_builder(
        self, runtimeConfig: AsModelConfig | None = None
    ) -> ASGenerationConfigBuilder:
        """The section `generation_config`, no longer than a runtime configuration allows."""
        section = dict(self.di_model_config["generation_config"])
        builder = ASGenerationConfigBuilder()
        eos: dict[str, Any] = {}
        builder.process_eos_tokens(section.pop("eos_token_id", None), eos)
        builder.update(eos).update(section)
        if runtimeConfig is not None:
            longest = runtimeConfig.engine_max_length
            builder.max_length(min(section.get("max_length", longest), longest))
        return builder

    def create_reference_runtime_config_builder(self) -> AsModelRuntimeConfigBuilder:
        """The section `runtime_config`, and the model's paths."""
        return deepcopy(self._runtime)

    def serialize_to_memory(self, engine: AsEngine) -> Self:
        """Nothing is to be done: the model is written already."""
        return self

    def free_model(self) -> Self:
        """Nothing is held."""
        return self

    def free_memory_serialize_file(self) -> Self:
        """Nothing is held."""
        return self

    def _read_file(self, path: str | os.PathLike[str] | None) -> str:
        places = [Path(path)] if path is not None else [self._folder, Path(self.di_model_path)]
        files = [place / self.config_name if path is None else place for place in places]
        for file in files:
            if file.is_file():
                return file.read_text(encoding="utf-8")
        raise ValueError(f"there is no {' nor '.join(map(str, files))}")


def _parse(content: str) -> dict[str, Any]:
    try:
        return msgspec.yaml.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ValueError(f"the configuration is no YAML mapping: {error}") from error
