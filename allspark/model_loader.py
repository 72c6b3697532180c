"""HuggingFaceModel: DashInfer's way from a checkpoint to an engine, without a conversion.

The engine reads weights straight from the checkpoint's files, once, when the model is started. So loading
finds and checks the files, serialising to memory has nothing to hold, and serialising to a path links or
copies them.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from ..backends.worker import Backend
from ..errors import InvalidArgument, MillstreamError, ModelFormatError, NotSupported
from .config.diconfig import DIConfigBuilder
from .dashinfer_model import ConfigFieldMissingError, DashInferModel
from .enums import RoPEScaleMethod, TargetDevice
from .generation_config import ASGenerationConfigBuilder
from .llm import LLM
from .model_config import AsModelConfig
from .model_source import ModelSource
from .native import AsEngine
from .quant import QuantizationSettings
from .rope import rope_changes
from .runtime_config import AsModelRuntimeConfigBuilder
from .serialized import Graph, fill_folder, is_written, symbolic_link, write_model
from .status import status_of

__all__ = [
    "LLM",
    "ConfigFieldMissingError",
    "DashInferModel",
    "HuggingFaceModel",
    "LoadFormat",
    "ModelSerializerException",
]

logger = logging.getLogger(__name__)

DATA_TYPES = ("float32", "bfloat16", "float16")


class LoadFormat(StrEnum):
    """Kind of weight files."""

    AUTO = "auto"
    PT = "pt"
    SAFETENSORS = "safetensors"


class ModelSerializerException(Exception):
    """A model cannot be loaded or written; `code` is an AsStatus and `__cause__` the error."""

    def __init__(self, message: str, code: int, model_name: object) -> None:
        super().__init__(message)
        self.code = code
        self.model_name = model_name

    def __str__(self) -> str:
        return f"[{self.code}] {self.model_name}: {self.args[0]}"


class HuggingFaceModel(LLM):
    """A checkpoint folder, hub id, bundled name or GGUF file, on its way into an engine."""

    def __init__(
        self,
        pretrain_model_name_or_path: str | os.PathLike[str],
        pretrain_model_name: str,
        in_memory_serialize: bool = False,
        user_set_data_type: str | None = None,
        trust_remote_code: bool = False,
        *,
        backend: str | Backend = "auto",
    ) -> None:
        """Nothing is read yet.

        Args:
            pretrain_model_name: name of the serialised model; slashes become underscores.
            in_memory_serialize: what `serialize` does.
            user_set_data_type: float32, bfloat16 or float16; None takes the model's own.
            trust_remote_code: lets transformers run Python files of the model to make its tokenizer; the
                engine itself never runs any.
            backend: which backend reads the files (Millstream's).
        """
        self.pretrain_model_name = pretrain_model_name
        self.in_memory_serialize = in_memory_serialize
        self.trust_remote_code = trust_remote_code
        self.data_type = _data_type(user_set_data_type)
        self.tokenizer: Any = None
        self.quant_setting: QuantizationSettings | None = None
        self._quantization = "none"
        self._source = ModelSource(os.fspath(pretrain_model_name_or_path), backend)
        self._config_changes: dict[str, Any] = {}
        self._serialised_to: tuple[str, str] | None = None

    @property
    def hf_model_path(self) -> str:
        """What the constructor was given."""
        return self._source.name

    @property
    def safe_model_name(self) -> str:
        """The model's name without slashes."""
        return self.pretrain_model_name.replace("/", "_")

    # Loading

    def load_model(
        self, override_data_type: str | None = None, direct_load: bool = False, load_format: str = "auto"
    ) -> Self:
        """Find the model, downloading it if need be, and read its configuration; no weight is read.

        Args:
            override_data_type: takes the place of `user_set_data_type`.
            direct_load: weights are always read straight from their files.
            load_format: "safetensors" insists on such files; "pt" is refused.

        Raises:
            ModelSerializerException: there is no such model, or nothing here reads it.
            InvalidArgument, NotSupported: an argument is not allowed.
        """
        if load_format not in tuple(LoadFormat):
            raise InvalidArgument("load_format", load_format, f"one of {[kind.value for kind in LoadFormat]}")
        if load_format == LoadFormat.PT:
            raise NotSupported(
                "load_format is 'pt': pickled weights are not read; allowed: 'auto', 'safetensors'"
            )
        if override_data_type is not None:
            self.data_type = _data_type(override_data_type)
        try:
            path = self._source.path
            if load_format == LoadFormat.SAFETENSORS and not any(path.glob("*.safetensors")):
                raise ModelFormatError(f"{path} has no .safetensors files")
        except MillstreamError as error:
            raise ModelSerializerException(str(error), int(status_of(error)), self.hf_model_path) from error
        return self

    def read_model_config(self) -> Self:
        """Read the model's configuration, unless that is done."""
        self._source.config()
        return self

    def get_model_config(self) -> dict[str, Any]:
        """config.json, or what the backend knows where there is none; with the changes of rotary scaling."""
        return {**self._source.described(), **self._config_changes}

    def get_model_context_length(self) -> int:
        """Longest sequence the model was made for, in tokens, before any rotary scaling asked for here."""
        return self._source.info.max_length

    def set_rope_scale_method(
        self, method: RoPEScaleMethod, parameter_dict: Mapping[str, Any] | None = None
    ) -> Self:
        """Change the rotary scaling; call it before a serialize method, which writes it into config.json.

        Args:
            parameter_dict: the entry `rope_scaling` of a transformers configuration; `method` says its type.

        Raises:
            NotSupported, InvalidArgument: see `rope.rope_changes`.
        """
        self._config_changes = rope_changes(self._source.config(), method, parameter_dict)
        return self

    def init_quantization(self, enable: bool = True, customized_quant_config: Any = None) -> Self:
        """Read a quantisation's settings into `quant_setting`, and choose it for the engine if `enable`.

        Weights are quantised when the engine reads them, at the model's start.

        Raises:
            NotSupported: the engine does not do what is to be enabled; `quant_setting` stays as it was.
            ValueError: there are no settings, or they contradict each other.
        """
        settings = customized_quant_config or self.get_model_config().get("quantization_config")
        if not settings:
            raise InvalidArgument(
                "customized_quant_config", settings, "settings, as the model's configuration has none"
            )
        read = QuantizationSettings.from_hf_config(settings)
        if enable:
            self._quantization = read.engine_quantization()
        self.quant_setting = read
        return self

    # Tokenizer

    def init_tokenizer(self, padding_side: str = "left") -> Self:
        """Load transformers' tokenizer, once. A GGUF file has the engine's own instead."""
        if self.tokenizer is None:
            self.tokenizer = self._source.load_tokenizer(
                padding_side=padding_side, trust_remote_code=self.trust_remote_code
            )
        return self

    def get_tokenizer(self) -> Any:
        """The tokenizer; None before `init_tokenizer`."""
        return self.tokenizer

    def initialised_tokenizer(self) -> Any:
        """The tokenizer, if it was initialised; the engine's own gives the same ids, much sooner."""
        return self.tokenizer

    # Reference configurations

    def create_reference_generation_config_builder(
        self, runtimeConfig: AsModelConfig | None = None
    ) -> ASGenerationConfigBuilder:
        """What the model's author recommends; with a runtime configuration, requests up to its length."""
        builder = ASGenerationConfigBuilder(self._source.generation_config())
        if runtimeConfig is not None:
            builder.max_length(min(self.get_model_context_length(), runtimeConfig.engine_max_length))
        return builder

    def create_reference_runtime_config_builder(
        self,
        engine_model_name: str,
        device_type: TargetDevice | str,
        device_ids: Sequence[int],
        max_batch: int,
        max_context_length: int = -1,
    ) -> AsModelRuntimeConfigBuilder:
        """A builder for what was serialised, or for the checkpoint itself where nothing was.

        `max_context_length` -1 takes the model's own.
        """
        length = self.get_model_context_length() if max_context_length == -1 else max_context_length
        model, weights = self._serialised_to or (str(self._source.path), "")
        return (
            AsModelRuntimeConfigBuilder()
            .model_name(engine_model_name)
            .model_file_path(model, weights)
            .compute_unit(device_type, device_ids)
            .max_length(length)
            .max_batch(max_batch)
            .data_type(self.data_type)
            .quantization(self._quantization)
            .backend(self._source.backend)
        )

    # Serialising

    def serialize(
        self,
        engine: AsEngine,
        model_output_dir: str | os.PathLike[str] = "",
        enable_quant: bool = False,
        weight_only_quant: bool = False,
        customized_quant_config: Any = None,
        multinode_mode: bool = True,
        lora_cfg: Mapping[str, Any] | None = None,
    ) -> Self:
        """`serialize_to_memory` or `serialize_to_path`, as `in_memory_serialize` says."""
        if self.in_memory_serialize:
            return self.serialize_to_memory(
                engine, enable_quant, weight_only_quant, multinode_mode, customized_quant_config, lora_cfg
            )
        return self.serialize_to_path(
            engine,
            model_output_dir,
            enable_quant,
            weight_only_quant,
            multinode_mode=multinode_mode,
            customized_quant_config=customized_quant_config,
            lora_cfg=lora_cfg,
        )

    def serialize_to_memory(
        self,
        engine: AsEngine,
        enable_quant: bool = False,
        weight_only_quant: bool = False,
        multinode_mode: bool = True,
        customized_quant_config: Any = None,
        lora_cfg: Mapping[str, Any] | None = None,
    ) -> Self:
        """Let the engine read the checkpoint where it is; no copy is made, neither on disk nor in memory.

        With a changed rotary scaling, a temporary folder of the engine's holds the changed configuration and
        links to the weights. With `enable_quant` the engine quantises as `customized_quant_config`, or the
        model's configuration, says; activations take 8 bits then, with `weight_only_quant`, too.
        `multinode_mode` says how to split over devices and matters only with several.

        Raises:
            NotSupported: adapters, or a quantisation that the engine does not do, are asked for.
            ValueError: see `init_quantization`.
        """
        self._check_serialising(enable_quant, customized_quant_config, lora_cfg)
        path = self._source.path
        self._serialised_to = (str(path), "")
        if self._config_changes:
            folder = engine.temporary_folder()
            fill_folder(Path(folder), path, link=symbolic_link, config_changes=self._config_changes)
            self._serialised_to = (folder, "")
        return self

    def serialize_to_path(
        self,
        engine: AsEngine,
        model_output_dir: str | os.PathLike[str],
        enable_quant: bool = False,
        weight_only_quant: bool = False,
        skip_if_exists: bool = False,
        multinode_mode: bool = True,
        customized_quant_config: Any = None,
        lora_cfg: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write the model into a folder, where `model_dir(folder, name)` and `DashInferModel` find it.

        The other arguments are those of `serialize_to_memory`; the weights are written as they are, and the
        graph file says how they are to be quantised. With `skip_if_exists`, a complete model that is there
        already, of the same data type, quantisation and rotary scaling, is kept.

        Raises:
            NotSupported, ValueError: see `serialize_to_memory`.
            InvalidArgument: no folder is named.
        """
        self._check_serialising(enable_quant, customized_quant_config, lora_cfg)
        if not os.fspath(model_output_dir):
            raise InvalidArgument("model_output_dir", model_output_dir, "a folder")
        source, name = self._source.path, self.safe_model_name
        graph = Graph.of(source, self.data_type, self._config_changes, self._quantization)
        if skip_if_exists and is_written(model_output_dir, name, graph):
            logger.info("%s is in %s already", name, model_output_dir)
        else:
            write_model(
                model_output_dir,
                name,
                source,
                graph,
                extra_files={DashInferModel.config_name: self._diconfig().to_yaml()},
            )
        built = AsModelRuntimeConfigBuilder().model_dir(model_output_dir, name).build()
        self._serialised_to = (built.model_path, built.weights_path)
        return self

    def free_model(self) -> Self:
        """Nothing is held: weights are read by the engine alone."""
        return self

    def free_memory_serialize_file(self) -> Self:
        """Nothing is held: what `serialize_to_memory` needs belongs to the engine."""
        return self

    def export_model_diconfig(self, output_path: str | os.PathLike[str]) -> Self:
        """Write the model's configurations as a YAML file for `DashInferModel`."""
        self._diconfig().build_yaml_path(output_path)
        return self

    # Pieces

    def _check_serialising(
        self, enable_quant: bool, quant_config: Any, lora_cfg: Mapping[str, Any] | None
    ) -> None:
        if lora_cfg and lora_cfg.get("lora_names"):
            raise NotSupported(
                f"lora_cfg is {dict(lora_cfg)!r}: adapters are loaded by load_lora, once the model runs; "
                "allowed: None"
            )
        if enable_quant:
            self.init_quantization(customized_quant_config=quant_config)

    def _diconfig(self) -> DIConfigBuilder:
        runtime = (
            AsModelRuntimeConfigBuilder()
            .model_name(self.safe_model_name)
            .compute_unit(TargetDevice.CPU)
            .max_length(self.get_model_context_length())
            .data_type(self.data_type)
            .build()
        )
        generation = self.create_reference_generation_config_builder(runtime)
        return (
            DIConfigBuilder()
            .model(self.get_model_config())
            .runtime_config(runtime)
            .generation_config(generation.build())
            .tokenizer("local")
        )


def _data_type(value: str | None) -> str:
    if value is not None and value not in DATA_TYPES:
        raise InvalidArgument("data type", value, f"one of {DATA_TYPES}, or None")
    return value or "auto"
