"""Model: one installed model as the faces see it, with its handler and its defaults."""

from collections.abc import Mapping
from functools import cached_property
from time import time
from typing import Any

from ..backends.worker import ModelInfo, Tokenizer
from ..engine import AsyncEngine, Engine, ModelConfig
from ..scheduler import SamplingParams
from ..scheduler.sampling_fields import read_sampling_fields
from .handlers import ModelHandler, handler_for


class Model:
    """What an engine's model is called, what its files say, and how to talk to it; it need not run."""

    def __init__(
        self, engine: AsyncEngine | Engine, config: ModelConfig, chat_template: str | None = None
    ) -> None:
        """The model is installed. `chat_template` is Jinja source that replaces its own.

        Raises:
            ModelNotFound: it is not installed.
        """
        self.name = config.installed_name
        self.config = config
        self.created = int(time())
        """Seconds since the epoch."""
        self.info: ModelInfo = engine.model_info(self.name)
        self._engine = engine
        self._chat_template = chat_template

    @property
    def max_length(self) -> int:
        """Longest request in tokens, prompt and output together."""
        return self._engine.memory_plan(self.name).max_length

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ModelFormatError where the model's files have none."""
        return self._engine.tokenizer(self.name)

    @cached_property
    def handler(self) -> ModelHandler:
        """What the model's family needs of a conversation.

        Raises:
            ModelFormatError: the model has no tokenizer.
            InvalidArgument: the chat template is no valid Jinja.
        """
        return handler_for(self.info, self.tokenizer, self._chat_template)

    @property
    def chat_defaults(self) -> Mapping[str, Any]:
        """Fields of SamplingParams for answers: what the author recommends, and what ends a turn."""
        return self.handler.sampling_defaults

    @property
    def text_defaults(self) -> Mapping[str, Any]:
        """Fields of SamplingParams for plain texts: what the model's author recommends."""
        return self.info.generation_defaults

    def sampling_params(self, *given: Mapping[str, Any]) -> SamplingParams:
        """The model's defaults, over them what is given, the later over the earlier.

        Names and forms are those that `read_sampling_fields` reads.

        Raises:
            InvalidArgument: a field does not exist, or its value lies outside its range.
        """
        fields = dict(self.chat_defaults)
        for more in given:
            fields.update(read_sampling_fields(more))
        return SamplingParams(**fields)
