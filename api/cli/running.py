"""A running model for the length of a command, and prompts made of text for it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ...engine import AsyncEngine, ModelConfig, OutputStream, new_event_loop
from ...scheduler import SamplingParams
from ..handlers import ModelHandler
from ..models import Model
from .terminal import interrupt_at_once, loading_line

Result = TypeVar("Result")


class RunningModel(Model):
    """One model of an engine of its own, ready for requests."""

    def __init__(self, engine: AsyncEngine, config: ModelConfig) -> None:
        super().__init__(engine, config)
        self.engine = engine

    async def start(self, prompt: Sequence[int], params: SamplingParams) -> tuple[OutputStream, ...]:
        """Queue one request; returns the output streams of its samples.

        Raises:
            InvalidArgument, LimitExceeded: the request can never be served.
        """
        handle, _ = await self.engine.start_request(self.name, prompt, params)
        return handle.streams


@asynccontextmanager
async def running_model(config: ModelConfig) -> AsyncIterator[RunningModel]:
    """Install and start a model; at the end, cancel what is left and release it.

    Raises:
        ModelError, InvalidArgument, NotSupported: it cannot be installed or started.
    """
    async with AsyncEngine() as engine:
        name = config.installed_name
        with interrupt_at_once(), loading_line(name) as progress:
            await engine.install_model(config)
            await engine.start_model(name, progress=progress)
        yield RunningModel(engine, config)


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on the fastest event loop there is; Ctrl-C cancels it and raises KeyboardInterrupt."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


class PromptMaker:
    """Turns what a user types into token ids: through the chat template, or as plain text."""

    def __init__(self, handler: ModelHandler, *, chat: bool | None, system: str | None) -> None:
        """With `chat` None the model's chat template is used if it has one; `system` needs it."""
        self._handler = handler
        has_template = handler.tokenizer.chat_template is not None
        self._chat = has_template or system is not None if chat is None else chat
        self._system = system

    def from_text(self, text: str) -> list[int]:
        """Token ids of one user message, or of plain text.

        Raises:
            NotSupported: the model has no chat template.
            InvalidArgument: the text is no valid Unicode.
        """
        if not self._chat:
            return self._handler.tokenizer.encode(text)
        return self.from_messages([{"role": "user", "content": text}])

    def from_messages(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, with the system message first if it has none of its own.

        Raises:
            NotSupported: the model has no chat template.
            InvalidArgument: a message is wrong, or the template refuses the conversation.
        """
        if self._system is not None and messages and messages[0].get("role") not in ("system", "developer"):
            messages = [{"role": "system", "content": self._system}, *messages]
        return self._handler.prompt(messages)
