"""AdapterTable: the low-rank adapters (LoRA) of one running model, by name."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..backends.worker import Adapter, Worker
from ..errors import (
    AdapterInUse,
    AdapterLoaded,
    AdapterNotFound,
    InvalidArgument,
    LimitExceeded,
    NotSupported,
)


class AdapterTable:
    """Which adapters a worker has, and the names under which prefixes computed with them are cached.

    The coroutines belong to the engine's event loop; `using` is called from any thread.
    """

    _loads = count(1)

    def __init__(
        self,
        model: str,
        worker: Worker,
        executor: ThreadPoolExecutor,
        live: Callable[[], set[str | None]],
        *,
        max_adapters: int | None = None,
        max_rank: int | None = None,
    ) -> None:
        """`executor` is the thread in which the worker is called; `live` tells what requests run under."""
        self._model = model
        self._worker = worker
        self._executor = executor
        self._live = live
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._cache_names: dict[str, str] = {}
        self._changing: set[str] = set()
        self._lock = threading.Lock()  # nothing is unloaded between a request's look-up and its start

    @property
    def names(self) -> list[str]:
        """Loaded adapters."""
        return list(self._cache_names)

    async def load(self, name: str, path: Path, scale: float) -> None:
        """Let the worker read an adapter between two steps.

        Raises:
            InvalidArgument, AdapterLoaded, AdapterNotFound, LimitExceeded, ModelFormatError, NotSupported
        """
        if not isinstance(name, str) or not name:
            raise InvalidArgument("adapter name", name, "a string that is not empty")
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not abs(scale) < float("inf"):
            raise InvalidArgument("scale", scale, "a finite number")
        if not self._worker.spec.takes_adapters:
            raise NotSupported(f"model {self._model!r} takes no adapters")
        if name in self._cache_names or name in self._changing:
            raise AdapterLoaded(f"an adapter named {name!r} is loaded in model {self._model!r} already")
        loaded = len(self._cache_names) + len(self._changing)
        if self._max_adapters is not None and loaded >= self._max_adapters:
            raise LimitExceeded(f"{loaded} adapters are loaded; at most {self._max_adapters} may be")
        adapter = Adapter(name=name, path=path, scale=float(scale))
        self._changing.add(name)
        try:
            await self._in_worker_thread(lambda: self._read(adapter))
            # A later adapter of the same name must not match what this one has computed.
            self._cache_names[name] = f"{name}#{next(self._loads)}"
        finally:
            self._changing.discard(name)

    async def unload(self, name: str) -> None:
        """Let the worker forget an adapter.

        Raises:
            AdapterNotFound, AdapterInUse
        """
        with self._lock:
            self._require(name)
            if name in self._live():
                raise AdapterInUse(f"requests run under adapter {name!r}; it can be unloaded once they end")
            del self._cache_names[name]
            self._changing.add(name)
        try:
            await self._in_worker_thread(lambda: self._worker.unload_adapter(name))
        finally:
            self._changing.discard(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[str]:
        """The name of its cached prefixes; while it is held, the adapter stays loaded.

        Raises:
            AdapterNotFound: no adapter of that name is loaded.
        """
        if name is None:
            yield ""
            return
        with self._lock:
            yield self._require(name)

    def _require(self, name: str) -> str:
        if name not in self._cache_names:
            names = ", ".join(map(repr, self._cache_names)) or "none"
            raise AdapterNotFound(
                f"no adapter named {name!r} is loaded in model {self._model!r}; loaded: {names}"
            )
        return self._cache_names[name]

    def _read(self, adapter: Adapter) -> None:
        if not adapter.path.exists():
            raise AdapterNotFound(f"there is no adapter {adapter.name!r} at {adapter.path}")
        self._worker.load_adapter(adapter, self._max_rank)

    async def _in_worker_thread(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, call)
