"""Engine: DashInfer's engine, over Millstream's."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, overload

from ..engine import ModelState
from ..engine import RequestHandle as EngineHandle
from ..errors import (
    InvalidArgument,
    LimitExceeded,
    MillstreamError,
    ModelNotFound,
    ModelStateError,
    NotSupported,
    UnknownRequest,
)
from .enums import AsCacheMode, AsStatus, RoPEScaleMethod, TargetDevice
from .generation_config import ASGenerationConfigBuilder
from .inputs import prompt_of_inputs, token_ids_of
from .llm import LLM
from .model_config import AsModelConfig
from .native import AsEngine
from .result_queue import GeneratedElements, GenerateRequestStatus, RequestHandle, ResultQueue
from .runtime_config import AsModelRuntimeConfigBuilder
from .sampling import Translation, translate
from .statistics import AsEngineStat, RequestStatInfo

__all__ = [
    "LLM",
    "ASGenerationConfigBuilder",
    "AsCacheMode",
    "AsEngine",
    "AsEngineStat",
    "AsModelConfig",
    "AsModelRuntimeConfigBuilder",
    "AsStatus",
    "Engine",
    "GenerateRequestStatus",
    "GeneratedElements",
    "RequestStatInfo",
    "ResultQueue",
    "RoPEScaleMethod",
    "TargetDevice",
]

logger = logging.getLogger(__name__)

GenerateConfig = ASGenerationConfigBuilder | Mapping[str, Any] | None
Started = tuple[AsStatus, RequestHandle | None, ResultQueue | None]


class Engine(AsEngine):
    """Several models, each under its own name; callable from any thread.

    Life of a model: install, start, requests, stop (start again is allowed), release. Wherever a verb answers
    another status than ALLSPARK_SUCCESS, `last_error` says why. A model that is installed or looked at under
    an unknown name raises instead, as in DashInfer.
    """

    def __repr__(self) -> str:
        return f"AsEngine: version={self.get_version_full()}"

    # Models

    def install_model(self, as_model_config_struct: AsModelConfig | AsModelRuntimeConfigBuilder) -> AsStatus:
        """Read the model's configuration and plan its memory; weights are read by `start_model`.

        Raises:
            InvalidArgument, NotSupported, InsufficientMemory: it cannot be run so.
            ModelNotFound, ModelFormatError: there is no such model.
            ModelStateError: the name is taken.
        """
        self._build_model_from_as_model_config(as_model_config_struct)
        self._thread.error = None
        return AsStatus.ALLSPARK_SUCCESS

    def build_model_from_config_struct(
        self, as_model_config_struct: AsModelConfig | AsModelRuntimeConfigBuilder
    ) -> AsStatus:
        """Older name of `install_model`."""
        return self.install_model(as_model_config_struct)

    def start_model(self, model_name: str) -> AsStatus:
        """Read the weights, warm up and take requests."""
        return self._answer(lambda: self._engine.start_model(model_name))

    def stop_model(self, model_name: str, *, timeout: float | None = None) -> AsStatus:
        """Deny new requests, wait for the others (after `timeout` seconds: end them) and free the weights."""
        return self._answer(lambda: self._engine.stop_model(model_name, timeout=timeout))

    def release_model(self, model_name: str) -> AsStatus:
        """Forget a model that does not run."""
        return self._answer(lambda: self._engine.release_model(model_name))

    def serialize_model_from_torch(self, *_: object, **__: object) -> NoReturn:
        """Raises NotSupported: models are not converted; the loader's serialize methods write them."""
        raise NotSupported("serialize_model_from_torch: use HuggingFaceModel(...).serialize_to_path(...)")

    def dump_build_meta_to_proto(self, *_: object, **__: object) -> NoReturn:
        """Raises NotSupported: there is no such file."""
        raise NotSupported("dump_build_meta_to_proto: models are not kept as protocol buffers")

    # Requests

    def start_request(
        self, model_name: str, inputs: Mapping[str, Any], generate_config: GenerateConfig = None
    ) -> Started:
        """Queue a request for {"input_ids": DLPack capsule, tensor, array or list}, shape [n] or [1, n].

        Returns:
            status, handle and queue; handle and queue are None when the request is refused.
        """
        return self._start(model_name, lambda: prompt_of_inputs(inputs), generate_config)

    def start_request_ids(
        self,
        model_name: str,
        model: LLM | None,
        input_ids: Any,
        generate_config_builder: GenerateConfig = None,
    ) -> Started:
        """`start_request` for token ids: a list, tuple, array, tensor or DLPack capsule, shape [n] or [1, n].

        `model` is there for DashInfer's sake: ids need no tokenizer.
        """
        return self._start(model_name, lambda: token_ids_of(input_ids), generate_config_builder)

    @overload
    def start_request_text(
        self,
        model_name: str,
        model: LLM | None,
        input_str_or_array: str,
        generate_config_builder: GenerateConfig = None,
    ) -> Started: ...

    @overload
    def start_request_text(
        self,
        model_name: str,
        model: LLM | None,
        input_str_or_array: list[str] | tuple[str, ...],
        generate_config_builder: GenerateConfig = None,
    ) -> list[Started]: ...

    def start_request_text(
        self,
        model_name: str,
        model: LLM | None,
        input_str_or_array: str | list[str] | tuple[str, ...],
        generate_config_builder: GenerateConfig = None,
    ) -> Started | list[Started]:
        """`start_request` for a text; for several texts, a list with an answer for each.

        A tokenizer that `model` has initialised encodes the text, else the engine's own for this model.
        """
        config = generate_config_builder
        if isinstance(input_str_or_array, str):
            return self._start_text(model_name, model, input_str_or_array, config)
        return [self._start_text(model_name, model, text, config) for text in input_str_or_array]

    def stop_request(self, model_name: str, request_handle: RequestHandle | None) -> AsStatus:
        """End a request; what it has produced stays readable."""
        return self._answer(lambda: self._engine.stop_request(model_name, _request_of(request_handle)))

    def release_request(self, model_name: str, request_handle: RequestHandle | None) -> AsStatus:
        """End a request if need be, and forget it; its queue stays readable."""
        return self._answer(lambda: self._engine.release_request(model_name, _request_of(request_handle)))

    def sync_request(self, model_name: str, request_handle: RequestHandle | None) -> AsStatus:
        """Wait until a request, or with None every request of the model, has ended."""

        def wait() -> None:
            request = None if request_handle is None else _request_of(request_handle)
            self._engine.sync_request(model_name, request)

        return self._answer(wait)

    def print_gen_cfg(self, gen_cfg: Mapping[str, Any]) -> None:
        """Print a generation configuration without its vocabulary."""
        print({key: value for key, value in gen_cfg.items() if key != "vocab"})

    def process_json_mode_arguments(self, generate_config: dict[str, Any]) -> None:
        """Take the vocabulary out of a configuration that asks for no format.

        Raises:
            NotSupported: it asks for a format.
        """
        translate(generate_config)
        for key in ("vocab", "vocab_type"):
            generate_config.pop(key, None)

    # Deprecated in DashInfer

    def get_no_wait(self, model_name: str, result_queue: ResultQueue) -> list[int]:
        """Token ids of `ResultQueue.GetNoWait()`."""
        return result_queue.GetNoWait().ids_from_generate

    def get_wait(self, model_name: str, result_queue: ResultQueue) -> list[int]:
        """Token ids of `ResultQueue.Get()`."""
        return result_queue.Get().ids_from_generate

    def get_request_status(self, model_name: str, result_queue: ResultQueue) -> GenerateRequestStatus:
        """`ResultQueue.GenerateStatus()`."""
        return result_queue.GenerateStatus()

    # Pieces

    def _start_text(self, model_name: str, model: LLM | None, text: str, config: GenerateConfig) -> Started:
        def encode() -> list[int]:
            if not isinstance(text, str):
                raise InvalidArgument("input_str_or_array", text, "a string, or a sequence of strings")
            tokenizer = _tokenizer_of(model)
            if tokenizer is None:
                return self._engine.tokenizer(model_name).encode(text)
            return list(tokenizer.encode(text))

        return self._start(model_name, encode, config)

    def _start(
        self, model_name: str, read_prompt: Callable[[], list[int]], generate_config: GenerateConfig
    ) -> Started:
        try:
            prompt = read_prompt()
            translation = translate(_config_dict(generate_config))
            self._check_prompt(model_name, len(prompt))
            started, _ = self._engine.start_request(
                model_name, prompt, translation.params, translation.options
            )
            on_gpu = self._engine.device(model_name).startswith("cuda")
        except ModelStateError as error:
            return self._refuse(error, self._status_by_state(model_name)), None, None
        except MillstreamError as error:
            return self._refuse(error), None, None
        _log_uuid(translation, model_name, started)
        self._thread.error = None
        handle = RequestHandle(started, on_gpu=on_gpu)
        return AsStatus.ALLSPARK_SUCCESS, handle, handle.queues[0]

    def _check_prompt(self, model_name: str, length: int) -> None:
        longest = self._engine.memory_plan(model_name).max_length - 2
        if not 1 <= length <= longest:
            raise LimitExceeded(f"the prompt has {length} tokens; {model_name!r} takes 1 to {longest}")

    def _status_by_state(self, model_name: str) -> AsStatus:
        """A model that stops or has stopped denies requests; one that was never started is called wrongly."""
        try:
            denies = self._engine.model_state(model_name) in (ModelState.STOPPING, ModelState.STOP)
        except ModelNotFound:  # released since
            denies = True
        return AsStatus.ALLSPARK_REQUEST_DENIED if denies else AsStatus.ALLSPARK_INVALID_CALL_ERROR


def _config_dict(config: GenerateConfig) -> Mapping[str, Any]:
    if config is None:
        return {}
    return config.build() if isinstance(config, ASGenerationConfigBuilder) else config


def _tokenizer_of(model: Any) -> Any:
    """The tokenizer that `model` wants texts to be encoded with; None leaves it to the engine's own."""
    if model is None or isinstance(model, LLM):
        return None if model is None else model.initialised_tokenizer()
    if not hasattr(model, "init_tokenizer"):
        raise InvalidArgument("model", model, "a model loader, or None")
    return model.init_tokenizer().get_tokenizer()


def _request_of(handle: RequestHandle | None) -> EngineHandle:
    if handle is None:
        raise UnknownRequest("the handle is None, which names no request; its start was refused")
    if not isinstance(handle, RequestHandle):
        raise UnknownRequest(f"{handle!r} is no handle of a request")
    return handle.request


def _log_uuid(translation: Translation, model_name: str, handle: EngineHandle) -> None:
    if translation.uuid:
        logger.info("request %d of %s is %s", handle.request_id, model_name, translation.uuid)
