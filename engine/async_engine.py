"""AsyncEngine: models and requests for programs that run on asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Self

from ..backends.registry import inspect_model
from ..backends.worker import ModelInfo, Progress, Tokenizer
from ..errors import InvalidArgument, ModelNotFound, ModelStateError, RequestFailed, UnknownRequest
from ..scheduler import SamplingParams
from .checks import check_prompts
from .config import ModelConfig
from .embeddings import Embedding, PoolingParams
from .intake import Prompt, RequestHandle, Started
from .memory_plan import MemoryPlan
from .model import InstalledModel, ModelState
from .output_stream import Output, OutputStream
from .request_options import RequestOptions
from .snapshot import EngineSnapshot
from .stats import EngineStats

_LONG_TEXT = 16_384
"""Characters; so many take a tokenizer some milliseconds."""


def _silent(what: str, done: float) -> None:
    """A Progress that tells nobody."""


class AsyncEngine:
    """Several models, each with its own scheduler and step loop, on the running event loop.

    Verbs that wait are coroutines and belong to the event loop the models were started on; the others
    (`stop_request`, `release_request`, `cancel_requests` and everything that only looks) are plain functions
    that never block and may be called from any thread. Weights are loaded and steps computed in threads, so
    the event loop stays free.
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
        await self.installed(name).start(progress or _silent)

    async def stop_model(self, name: str, *, timeout: float | None = None) -> None:
        """Refuse new requests, wait for the others, free the weights; after `timeout` seconds, cancel them.

        Raises:
            ModelNotFound, ModelStateError
        """
        await self.installed(name).stop(timeout)

    async def release_model(self, name: str) -> None:
        """Forget a model that does not run; its name is free again.

        Raises:
            ModelNotFound, ModelStateError
        """
        self.installed(name).release()
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

    async def start_request(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Started:
        """Queue one request; returns its handle and the output stream of its (first) sample.

        It waits for nothing but a long text to be tokenised. Conversations go through
        `tokenizer(name).apply_chat_template` first.

        Raises:
            ModelNotFound, ModelStateError: the model is not there or does not take requests.
            InvalidArgument, LimitExceeded, NotSupported: the request can never be served.
            AdapterNotFound: the adapter is not loaded.
            QueueFull: too much is queued; says when to try again.
        """
        (started,) = await self.start_requests(name, [prompt], params, options)
        return started

    async def start_requests(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Started]:
        """`start_request` for each of several prompts: all of them or none; they are let in as one request.

        Raises: as `start_request` does.
        """
        token_ids = await self._token_ids(name, prompts)
        return (
            self.installed(name)
            .intake()
            .start_requests(token_ids, params or SamplingParams(), options or RequestOptions())
        )

    async def start_embedding(
        self,
        name: str,
        prompt: Prompt,
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Started:
        """Queue a request for an embedding of one prompt; once it has finished, `stream.embedding` holds it.

        `options.detokenize` makes no difference, as there is no text.

        Raises: as `start_request` does; NotSupported where the model gives no embeddings.
        """
        (started,) = await self.start_embeddings(name, [prompt], params, options)
        return started

    async def start_embeddings(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Started]:
        """`start_embedding` for each of several prompts: all or none; they are let in as one request.

        Raises: as `start_embedding` does.
        """
        token_ids = await self._token_ids(name, prompts)
        return (
            self.installed(name)
            .intake()
            .start_embeddings(token_ids, params or PoolingParams(), options or RequestOptions())
        )

    async def embed(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Embedding]:
        """Embeddings of several prompts, in their order; when one is refused or fails, none is computed on.

        Raises: as `start_embedding` does; RequestFailed where one ends without an embedding.
        """
        started = await self.start_embeddings(name, prompts, params, options)
        try:
            return [await _embedding(stream) for _, stream in started]
        finally:
            for handle, _ in started:
                self._end(name, handle)

    async def generate_iterator(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> AsyncGenerator[Output]:
        """Outputs of one request as they come, the last with its finish reason.

        However the loop over them is left (its end, `break`, an exception, cancellation), the request ends. A
        generator that is kept in a variable ends it once it is closed: `async with contextlib.aclosing(…)`.

        Raises: as `start_request` does, with the first output; InvalidArgument where `n` is not 1.
        """
        require_one_sample(params)
        handle, stream = await self.start_request(name, prompt, params, options)
        try:
            async for output in stream:
                yield output
        finally:
            self._end(name, handle)

    def stop_request(self, name: str, handle: RequestHandle) -> None:
        """End a request at the next step; what it has produced stays readable.

        Raises:
            ModelNotFound, UnknownRequest
        """
        self.installed(name).cancel(self._live(name, handle))

    def release_request(self, name: str, handle: RequestHandle) -> None:
        """End a request if need be and forget it; its output stays readable.

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
        running = self.installed(name).running
        if running is not None:
            running.loop.cancel_all()

    async def sync_request(self, name: str, handle: RequestHandle | None = None) -> None:
        """Wait until a request, or with None every request of the model, has ended.

        Raises:
            ModelNotFound, UnknownRequest
        """
        model = self.installed(name)
        streams = model.live_streams() if handle is None else self._live(name, handle).streams
        for stream in streams:
            await stream.await_finished()

    # Adapters

    async def load_adapter(self, name: str, adapter: str, path: str | Path, *, scale: float = 1.0) -> None:
        """Load a low-rank adapter (LoRA) into a running model, for requests that name it; steps wait for it.

        Raises:
            ModelNotFound, ModelStateError
            AdapterLoaded, AdapterNotFound, ModelFormatError, LimitExceeded, InvalidArgument, NotSupported
        """
        await self.installed(name).intake().adapters.load(adapter, Path(path), scale)

    async def unload_adapter(self, name: str, adapter: str) -> None:
        """Forget an adapter that no request runs under.

        Raises:
            ModelNotFound, ModelStateError, AdapterNotFound, AdapterInUse
        """
        await self.installed(name).intake().adapters.unload(adapter)

    def adapters(self, name: str) -> list[str]:
        """Names of the adapters loaded in a running model."""
        return self.installed(name).intake().adapters.names

    # Looking

    def models(self) -> list[str]:
        """Names of the installed models."""
        return list(self._models)

    def model_info(self, name: str) -> ModelInfo:
        """What the model's files say."""
        return self.installed(name).info

    def model_state(self, name: str) -> ModelState:
        """Where the model is in its life."""
        return self.installed(name).state

    def tokenizer(self, name: str) -> Tokenizer:
        """The model's tokenizer."""
        return self.installed(name).tokenizer

    def device(self, name: str) -> str:
        """Where the model is computed: "cpu", "cuda:0", …"""
        return self.installed(name).device

    def memory_plan(self, name: str) -> MemoryPlan:
        """What the model takes, or would take once started."""
        return self.installed(name).plan

    def stats(self, name: str) -> EngineStats:
        """State and counters of a model."""
        return self.installed(name).stats()

    def snapshot(self, name: str) -> EngineSnapshot:
        """A model's requests and blocks at this moment; on the engine's event loop, also during a step."""
        return self.installed(name).snapshot()

    async def _token_ids(self, name: str, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
        """Each prompt as token ids; texts are tokenised beside the event loop where they are long."""
        intake = self.installed(name).intake()
        check_prompts(prompts)
        if sum(len(prompt) for prompt in prompts if isinstance(prompt, str)) < _LONG_TEXT:
            return [intake.token_ids(prompt) for prompt in prompts]
        return await asyncio.to_thread(lambda: [intake.token_ids(prompt) for prompt in prompts])

    def _end(self, name: str, handle: RequestHandle) -> None:
        model = self._models.get(name)
        if model is not None and not handle.finished:
            model.cancel(handle)

    def _reserved_bytes(self, device: str) -> int:
        """Bytes of a device that running models have planned."""
        return sum(model.reserved_bytes(device) for model in list(self._models.values()))

    def installed(self, name: str) -> InstalledModel:
        """The model of that name. Raises ModelNotFound."""
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


async def _embedding(stream: OutputStream) -> Embedding:
    await stream.await_finished()
    if stream.embedding is None:
        reason = stream.error or f"it ended with {stream.finish_reason}"
        raise RequestFailed(f"no embedding was computed: {reason}")
    return Embedding(stream.embedding, stream.num_prompt_tokens)


def require_one_sample(params: SamplingParams | None) -> None:
    """Raise InvalidArgument where several samples are asked for."""
    if params is not None and params.n != 1:
        raise InvalidArgument(
            "n", params.n, "1 where outputs are iterated; start_request gives each a stream"
        )
