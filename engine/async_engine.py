"""AsyncEngine: models and requests for programs that run on asyncio."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, overload

from ..backends.registry import inspect_model
from ..backends.worker import ModelInfo, Progress, Tokenizer
from ..errors import InvalidArgument, ModelNotFound, ModelStateError, RequestFailed, UnknownRequest
from ..scheduler import SamplingParams
from .config import ModelConfig
from .embeddings import Embedding, PoolingParams
from .intake import RequestHandle
from .memory_plan import MemoryPlan
from .model import InstalledModel, ModelState
from .request_options import RequestOptions
from .result_queue import ResultQueue
from .snapshot import EngineSnapshot
from .stats import EngineStats

Started = tuple[RequestHandle, ResultQueue]


def _silent(what: str, done: float) -> None:
    """A Progress that tells nobody."""


class AsyncEngine:
    """Several models, each with its own scheduler and step loop, on the running event loop.

    The coroutines belong to the event loop the models were started on; `start_request`, `stop_request`,
    `release_request` and everything that only looks may be called from any thread. Weights are loaded and
    steps computed in threads, so the event loop stays free.
    """

    def __init__(self) -> None:
        self._models: dict[str, InstalledModel] = {}
        self._installing: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Models

    async def install_model(self, config: ModelConfig) -> ModelInfo:
        """Find the model's files, read its configuration and plan its memory; no weight is read.

        Raises:
            ModelStateError: the name is taken.
            ModelNotFound, ModelFormatError, InvalidArgument, NotSupported, InsufficientMemory
        """
        name = config.installed_name
        if name in self._models or name in self._installing:
            raise ModelStateError(f"a model named {name!r} is installed already; release it or choose a name")
        self._installing.add(name)
        try:
            self._models[name] = await asyncio.to_thread(_install, config, self._reserved_bytes)
        finally:
            self._installing.discard(name)
        return self._models[name].info

    async def start_model(self, name: str, *, progress: Progress | None = None) -> None:
        """Load the weights, warm up and take requests. `progress` is called from another thread.

        Raises:
            ModelNotFound, ModelStateError, InsufficientMemory, ModelFormatError
        """
        await self._model(name).start(progress or _silent)

    async def stop_model(self, name: str, *, timeout: float | None = None) -> None:
        """Refuse new requests, wait for the others, free the weights; after `timeout` seconds, cancel them.

        Raises:
            ModelNotFound, ModelStateError
        """
        await self._model(name).stop(timeout)

    async def release_model(self, name: str) -> None:
        """Forget a model that does not run; its name is free again.

        Raises:
            ModelNotFound, ModelStateError
        """
        self._model(name).release()
        del self._models[name]

    async def close(self) -> None:
        """Cancel all requests, stop and release every model."""
        for name, model in list(self._models.items()):
            if model.state is ModelState.RUNNING:
                await model.stop(timeout=0)
            if model.state in (ModelState.INITIAL, ModelState.STOP):
                model.release()
                del self._models[name]

    # Requests

    def start_request(
        self,
        name: str,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        **options: Any,
    ) -> Started:
        """Queue one request; returns its handle and the queue of its (first) sample. Never blocks.

        `options` are the fields of RequestOptions: priority, tenant, cache_salt, deadline, queue_timeout,
        adapter, detokenize.

        Raises:
            ModelNotFound, ModelStateError: the model is not there or does not take requests.
            InvalidArgument, LimitExceeded, NotSupported: the request can never be served.
            AdapterNotFound: the adapter is not loaded.
            QueueFull: too much is queued; says when to try again.
        """
        model = self._model(name)
        token_ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        checked = _options(options)
        handle = model.intake().start_request(
            token_ids, SamplingParams() if params is None else params, checked
        )
        return handle, handle.queue

    def start_request_ids(
        self, name: str, token_ids: Sequence[int], params: SamplingParams | None = None, **options: Any
    ) -> Started:
        """`start_request` for token ids."""
        return self.start_request(name, list(token_ids), params, **options)

    @overload
    def start_request_text(
        self, name: str, text: str, params: SamplingParams | None = None, **options: Any
    ) -> Started: ...

    @overload
    def start_request_text(
        self, name: str, text: Sequence[str], params: SamplingParams | None = None, **options: Any
    ) -> list[Started]: ...

    def start_request_text(
        self, name: str, text: str | Sequence[str], params: SamplingParams | None = None, **options: Any
    ) -> Started | list[Started]:
        """`start_request` for one text, or for each of several; when one is refused, none is started."""
        if isinstance(text, str):
            return self.start_request(name, text, params, **options)
        for item in text:
            if not isinstance(item, str):
                raise InvalidArgument("text", item, "a string, or a sequence of strings")
        started: list[Started] = []
        try:
            started.extend(self.start_request(name, item, params, **options) for item in text)
        except BaseException:
            for handle, _ in started:
                self.release_request(name, handle)
            raise
        return started

    def start_embedding(
        self,
        name: str,
        prompt: str | Sequence[int],
        params: PoolingParams | None = None,
        **options: Any,
    ) -> Started:
        """Queue a request for an embedding of one prompt; once it has finished, `queue.embedding` holds it.

        `options` are those of `start_request`; `detokenize` makes no difference, as there is no text.

        Raises: as `start_request` does; NotSupported where the model gives no embeddings.
        """
        model = self._model(name)
        intake = model.intake()
        token_ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        checked = _options(options)
        handle = intake.start_embedding(token_ids, PoolingParams() if params is None else params, checked)
        return handle, handle.queue

    async def embed(
        self,
        name: str,
        prompts: Sequence[str | Sequence[int]],
        params: PoolingParams | None = None,
        **options: Any,
    ) -> list[Embedding]:
        """Embeddings of several prompts, in their order; when one is refused or fails, none is computed on.

        Raises: as `start_embedding` does; RequestFailed where one ends without an embedding.
        """
        if isinstance(prompts, str):
            raise InvalidArgument("prompts", prompts, "a sequence of texts or of token ids")
        started: list[Started] = []
        try:
            started.extend(self.start_embedding(name, prompt, params, **options) for prompt in prompts)
            return [await _embedding(queue) for _, queue in started]
        finally:
            for handle, queue in started:
                if queue.finish_reason is None:
                    self.stop_request(name, handle)

    def stop_request(self, name: str, handle: RequestHandle) -> None:
        """End a request at the next step; what it has produced stays readable.

        Raises:
            ModelNotFound, UnknownRequest
        """
        self._model(name).cancel(self._live(name, handle))

    def release_request(self, name: str, handle: RequestHandle) -> None:
        """End a request if need be and forget it; its queue stays readable.

        Raises:
            ModelNotFound, UnknownRequest
        """
        self.stop_request(name, handle)
        handle.released = True

    def cancel_requests(self, name: str) -> None:
        """End every request of a model at the next step; what they have produced stays readable.

        Raises:
            ModelNotFound
        """
        running = self._model(name).running
        if running is not None:
            running.loop.cancel_all()

    async def sync_request(self, name: str, handle: RequestHandle | None = None) -> None:
        """Wait until a request, or with None every request of the model, has ended.

        Raises:
            ModelNotFound, UnknownRequest
        """
        model = self._model(name)
        queues = model.live_queues() if handle is None else self._live(name, handle).queues
        for queue in queues:
            await queue.await_finished()

    # Adapters

    async def load_adapter(self, name: str, adapter: str, path: str | Path, *, scale: float = 1.0) -> None:
        """Load a low-rank adapter (LoRA) into a running model, for requests that name it; steps wait for it.

        Raises:
            ModelNotFound, ModelStateError
            AdapterLoaded, AdapterNotFound, ModelFormatError, LimitExceeded, InvalidArgument, NotSupported
        """
        await self._model(name).intake().adapters.load(adapter, Path(path), scale)

    async def unload_adapter(self, name: str, adapter: str) -> None:
        """Forget an adapter that no request runs under.

        Raises:
            ModelNotFound, ModelStateError, AdapterNotFound, AdapterInUse
        """
        await self._model(name).intake().adapters.unload(adapter)

    def adapters(self, name: str) -> list[str]:
        """Names of the adapters loaded in a running model."""
        return self._model(name).intake().adapters.names

    # Looking

    def models(self) -> list[str]:
        """Names of the installed models."""
        return list(self._models)

    def model_info(self, name: str) -> ModelInfo:
        """What the model's files say."""
        return self._model(name).info

    def model_state(self, name: str) -> ModelState:
        """Where the model is in its life."""
        return self._model(name).state

    def tokenizer(self, name: str) -> Tokenizer:
        """The model's tokenizer."""
        return self._model(name).tokenizer

    def memory_plan(self, name: str) -> MemoryPlan:
        """What the model takes, or would take once started."""
        return self._model(name).plan

    def get_as_engine_stat(self, name: str) -> EngineStats:
        """State and counters of a model."""
        return self._model(name).stats()

    def snapshot(self, name: str) -> EngineSnapshot:
        """A model's requests and blocks at this moment; on the engine's event loop, also during a step."""
        return self._model(name).snapshot()

    def _reserved_bytes(self, device: str) -> int:
        """Bytes of a device that running models have planned."""
        return sum(model.reserved_bytes(device) for model in list(self._models.values()))

    def _model(self, name: str) -> InstalledModel:
        model = self._models.get(name)
        if model is None:
            names = ", ".join(map(repr, self._models)) or "none"
            raise ModelNotFound(f"no model named {name!r} is installed; installed: {names}")
        return model

    @staticmethod
    def _live(name: str, handle: RequestHandle) -> RequestHandle:
        if not isinstance(handle, RequestHandle) or handle.model != name or handle.released:
            raise UnknownRequest(f"{handle!r} names no live request of model {name!r}")
        return handle


def _install(config: ModelConfig, neighbours: Callable[[str], int]) -> InstalledModel:
    backend, info = inspect_model(config.model, config.backend, config.revision, config.token)
    return InstalledModel(config, backend, info, neighbours)


async def _embedding(queue: ResultQueue) -> Embedding:
    await queue.await_finished()
    if queue.embedding is None:
        reason = queue.error or f"it ended with {queue.finish_reason}"
        raise RequestFailed(f"no embedding was computed: {reason}")
    return Embedding(queue.embedding, queue.prompt_length)


def _options(options: dict[str, Any]) -> RequestOptions:
    for name in options:
        if name not in RequestOptions.__struct_fields__:
            known = ", ".join(RequestOptions.__struct_fields__)
            raise TypeError(f"unknown option {name!r}; known: {known}")
    return RequestOptions(**options)
