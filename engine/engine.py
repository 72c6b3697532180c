"""Engine: the verbs of AsyncEngine for any thread, on an event loop of its own."""

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Self, TypeVar

from ..backends.worker import ModelInfo, Progress, Tokenizer
from ..scheduler import SamplingParams
from .async_engine import AsyncEngine, require_one_sample
from .checks import check_prompts
from .config import ModelConfig
from .embeddings import Embedding, PoolingParams
from .intake import Prompt, RequestHandle, Started
from .memory_plan import MemoryPlan
from .model import ModelState
from .output_stream import Output
from .request_options import RequestOptions
from .stats import EngineStats

Result = TypeVar("Result")

_LOOK_SECONDS = 0.5
"""How long a verb waits at most before Python looks at signals again."""


class Engine:
    """Same verbs and errors as AsyncEngine; they block the calling thread and no other.

    An engine that is dropped, or still open when the interpreter exits, closes itself.
    """

    def __init__(self) -> None:
        self._engine = AsyncEngine()
        self._loop = new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="millstream-engine", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _close, self._engine, self._loop, thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all requests, release every model and end the thread. A second call does nothing."""
        self._finalizer()

    # Models

    def install_model(self, config: ModelConfig) -> ModelInfo:
        """See AsyncEngine.install_model."""
        return self._run(self._engine.install_model(config))

    def start_model(self, name: str, *, progress: Progress | None = None) -> None:
        """See AsyncEngine.start_model."""
        self._run(self._engine.start_model(name, progress=progress))

    def stop_model(self, name: str, *, timeout: float | None = None) -> None:
        """See AsyncEngine.stop_model."""
        self._run(self._engine.stop_model(name, timeout=timeout))

    def release_model(self, name: str) -> None:
        """See AsyncEngine.release_model."""
        self._run(self._engine.release_model(name))

    # Requests

    def start_request(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Started:
        """See AsyncEngine.start_request; a text is tokenised in the calling thread."""
        (started,) = self.start_requests(name, [prompt], params, options)
        return started

    def start_requests(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Started]:
        """See AsyncEngine.start_requests."""
        intake = self._engine.installed(name).intake()
        check_prompts(prompts)
        token_ids = [intake.token_ids(prompt) for prompt in prompts]
        return intake.start_requests(token_ids, params or SamplingParams(), options or RequestOptions())

    def start_embedding(
        self,
        name: str,
        prompt: Prompt,
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Started:
        """See AsyncEngine.start_embedding."""
        (started,) = self.start_embeddings(name, [prompt], params, options)
        return started

    def start_embeddings(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Started]:
        """See AsyncEngine.start_embeddings."""
        intake = self._engine.installed(name).intake()
        check_prompts(prompts)
        token_ids = [intake.token_ids(prompt) for prompt in prompts]
        return intake.start_embeddings(token_ids, params or PoolingParams(), options or RequestOptions())

    def embed(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: PoolingParams | None = None,
        options: RequestOptions | None = None,
    ) -> list[Embedding]:
        """See AsyncEngine.embed."""
        return self._run(self._engine.embed(name, prompts, params, options))

    def generate_iterator(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        options: RequestOptions | None = None,
    ) -> Generator[Output]:
        """Outputs of one request as they come; when the loop over them is left, the request ends.

        Raises: as AsyncEngine.generate_iterator does.
        """
        require_one_sample(params)
        handle, stream = self.start_request(name, prompt, params, options)
        try:
            yield from stream
        finally:
            if not handle.finished:
                self._engine.installed(name).cancel(handle)

    def stop_request(self, name: str, handle: RequestHandle) -> None:
        """See AsyncEngine.stop_request."""
        self._engine.stop_request(name, handle)

    def release_request(self, name: str, handle: RequestHandle) -> None:
        """See AsyncEngine.release_request."""
        self._engine.release_request(name, handle)

    def sync_request(self, name: str, handle: RequestHandle | None = None) -> None:
        """See AsyncEngine.sync_request."""
        self._run(self._engine.sync_request(name, handle))

    # Adapters

    def load_adapter(self, name: str, adapter: str, path: str | Path, *, scale: float = 1.0) -> None:
        """See AsyncEngine.load_adapter."""
        self._run(self._engine.load_adapter(name, adapter, path, scale=scale))

    def unload_adapter(self, name: str, adapter: str) -> None:
        """See AsyncEngine.unload_adapter."""
        self._run(self._engine.unload_adapter(name, adapter))

    def adapters(self, name: str) -> list[str]:
        """See AsyncEngine.adapters."""
        return self._engine.adapters(name)

    # Looking

    def models(self) -> list[str]:
        """See AsyncEngine.models."""
        return self._engine.models()

    def model_info(self, name: str) -> ModelInfo:
        """See AsyncEngine.model_info."""
        return self._engine.model_info(name)

    def model_state(self, name: str) -> ModelState:
        """See AsyncEngine.model_state."""
        return self._engine.model_state(name)

    def tokenizer(self, name: str) -> Tokenizer:
        """See AsyncEngine.tokenizer."""
        return self._engine.tokenizer(name)

    def device(self, name: str) -> str:
        """See AsyncEngine.device."""
        return self._engine.device(name)

    def memory_plan(self, name: str) -> MemoryPlan:
        """See AsyncEngine.memory_plan."""
        return self._engine.memory_plan(name)

    def stats(self, name: str) -> EngineStats:
        """See AsyncEngine.stats."""
        return self._engine.stats(name)

    def _run(self, verb: Coroutine[Any, Any, Result]) -> Result:
        running = asyncio.run_coroutine_threadsafe(verb, self._loop)
        try:
            # A signal that comes between Python's last look at signals and the wait does not end the wait.
            while wait((running,), _LOOK_SECONDS).not_done:
                pass
            return running.result()
        except KeyboardInterrupt:
            running.cancel()
            raise


def _close(engine: AsyncEngine, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    closing = asyncio.run_coroutine_threadsafe(_close_all(engine), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is not thread:
        closing.result()
        thread.join()
        loop.close()


async def _close_all(engine: AsyncEngine) -> None:
    await engine.close()
    unfinished = asyncio.all_tasks() - {asyncio.current_task()}
    for task in unfinished:
        task.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
