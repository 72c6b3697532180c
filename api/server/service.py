"""ModelService: the models of an AsyncEngine as clients see them, each with its handler."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...backends.worker import Progress
from ...engine import AsyncEngine, ModelConfig, ModelState, OutputStream
from ...errors import MillstreamError, ModelError, ModelNotFound
from ..models import Model
from .text_pool import TextPool


@dataclass(frozen=True, slots=True)
class Target:
    """What a request's `model` field names."""

    served: Model
    adapter: str | None = None
    """The loaded adapter that was named instead of its model."""

    @property
    def name(self) -> str:
        """As the client is to see it."""
        return self.adapter or self.served.name


class Observer(Protocol):
    """Is told of every sample that has ended."""

    def request_finished(self, model: str, tenant: str, queue: OutputStream, *, sample: int = 0) -> None:
        """`queue` has its finish reason; `sample` is its place among those of its prompt."""

    def remember(self, model: str) -> None:
        """A model is about to be stopped, and its counters with it."""


class ModelService:
    """Which models there are, and under what names; loads and unloads them."""

    def __init__(
        self,
        engine: AsyncEngine,
        observer: Observer,
        *,
        chat_template: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """`chat_template` is Jinja source that replaces the models' own.

        `defaults` are fields of ModelConfig for models that are loaded over HTTP.
        """
        self.defaults = dict(defaults or {})
        self.engine = engine
        self.texts = TextPool()
        self._observer = observer
        self._chat_template = chat_template
        self._reports: set[asyncio.Task[None]] = set()
        self._models: dict[str, Model] = {}

    def models(self) -> list[Model]:
        """All models, the default one first."""
        return list(self._models.values())

    def get(self, name: str | None) -> Model:
        """A model by its name; without a name, the first.

        Raises:
            ModelNotFound
        """
        model = self._models.get(name) if name else next(iter(self._models.values()), None)
        if model is None:
            names = ", ".join(map(repr, self._models)) or "none"
            wanted = f"no model named {name!r} is loaded" if name else "no model is loaded"
            raise ModelNotFound(f"{wanted}; loaded: {names}")
        return model

    def target(self, name: str | None) -> Target:
        """A model, or a model under one of its adapters, by its name.

        Raises:
            ModelNotFound
        """
        if name and name not in self._models:
            for model in self._models.values():
                if name in self.adapters(model):
                    return Target(model, adapter=name)
        return Target(self.get(name))

    def adapters(self, model: Model) -> Sequence[str]:
        """Names of the adapters loaded in a model."""
        if self.engine.model_state(model.name) is not ModelState.RUNNING:
            return ()
        return self.engine.adapters(model.name)

    async def load(self, config: ModelConfig, *, progress: Progress | None = None) -> Model:
        """Install and start a model. `progress` is called from another thread.

        Raises:
            ModelError, InvalidArgument, NotSupported: as AsyncEngine's; nothing of it is left.
        """
        await self.install((config,))
        return await self.start(config, progress=progress)

    async def install(self, configs: Sequence[ModelConfig]) -> None:
        """Look at models before one of them is loaded: their files, and what they would take.

        Raises:
            ModelError, InvalidArgument, NotSupported: one is refused; then none is left. Of several, a
                ModelError says which.
        """
        installed: list[str] = []
        try:
            for config in configs:
                await self.engine.install_model(config)
                installed.append(config.installed_name)
        except BaseException as error:
            for name in installed:
                await self.engine.release_model(name)
            if isinstance(error, MillstreamError) and len(configs) > 1:
                raise ModelError(f"{config.installed_name}: {error}") from error
            raise

    async def start(self, config: ModelConfig, *, progress: Progress | None = None) -> Model:
        """Load a model that is installed. `progress` is called from another thread.

        Raises:
            ModelError, InvalidArgument, NotSupported: as AsyncEngine's; nothing of it is left.
        """
        name = config.installed_name
        try:
            await self.engine.start_model(name, progress=progress)
        except BaseException:
            if self.engine.model_state(name) is ModelState.INITIAL:
                await self.engine.release_model(name)
            raise
        return self.adopt(config)

    def adopt(self, config: ModelConfig) -> Model:
        """Serve a model that the engine runs already.

        Raises:
            ModelNotFound: it is not installed.
        """
        model = Model(self.engine, config, self._chat_template)
        self._models[model.name] = model
        return model

    async def unload(self, name: str, *, timeout: float | None = None) -> None:
        """Take no more requests, let the others end (after `timeout` seconds: cancel them), free the model.

        Raises:
            ModelNotFound, ModelStateError
        """
        self.get(name)
        self._observer.remember(name)
        await self.engine.stop_model(name, timeout=timeout)
        await self.engine.release_model(name)
        self._models.pop(name, None)

    def report_finished(self, model: str, tenant: str, samples: Sequence[OutputStream]) -> None:
        """Tell the observer of a prompt's samples now, or once they end: a stopped one does with a step."""
        if all(queue.finish_reason is not None for queue in samples):
            self._report(model, tenant, samples)
            return
        task = asyncio.create_task(self._report_later(model, tenant, samples))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report_later(self, model: str, tenant: str, samples: Sequence[OutputStream]) -> None:
        for queue in samples:
            await queue.await_finished()
        self._report(model, tenant, samples)

    def _report(self, model: str, tenant: str, samples: Sequence[OutputStream]) -> None:
        for sample, queue in enumerate(samples):
            self._observer.request_finished(model, tenant, queue, sample=sample)
