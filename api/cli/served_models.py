"""The models of `serve`: what is written for each of them, over what the flags say for all."""

import argparse
import logging
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ...backends.registry import inspect_model
from ...engine import ModelConfig
from ...errors import InvalidArgument
from ...scheduler.sampling_fields import unknown_field
from .options import ENGINE_FLAGS, EngineFlag, model_config

logger = logging.getLogger(__name__)

MAX_QUEUED_REQUESTS = 1024

ADMISSION_FLAGS = (
    EngineFlag("max_queued_requests", f"over so many: 429 (default {MAX_QUEUED_REQUESTS})", "N", int),
    EngineFlag("max_queued_tokens", "over so many prompt tokens in the queue: 429", "N", int),
    EngineFlag("queue_timeout", "longest wait for the first step", "SECONDS", float),
)
"""What only a server's models take."""

GRAMMAR = "[NAME=]MODEL[,OPTION=VALUE…]"
_OPTIONS = {flag.field: flag for flag in (*ENGINE_FLAGS, *ADMISSION_FLAGS)}
_COMMA = re.compile(r",(?=[\w-]+=)")
"""Where an option begins; any other comma belongs to what stands before it."""


def model_configs(options: argparse.Namespace, defaults: Mapping[str, Any]) -> list[ModelConfig]:
    """One configuration per model; together they keep to the memory fraction, in equal shares.

    What a model's own options say goes before the flags, which count for all models, and these before
    `defaults`. A model with a memory fraction of its own may fill the memory up to that.

    Raises:
        InvalidArgument: a value lies outside its range, an option is unknown, or two models have one name.
    """
    configs: list[ModelConfig] = []
    for number, text in enumerate(options.models, start=1):
        fields = read_model(text)
        own = argparse.Namespace(**{**vars(options), **fields})
        try:
            config = model_config(own, **defaults)
        except InvalidArgument as error:
            if error.parameter not in fields:
                raise
            raise InvalidArgument(f"{error.parameter} of {text}", error.value, error.allowed) from None
        if "memory_fraction" not in fields:
            # A model's plan counts what runs already, so the n-th may go up to n shares.
            share = config.memory_fraction * number / len(options.models)
            config = msgspec.structs.replace(config, memory_fraction=share)
        configs.append(config)
    names = [config.installed_name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument("MODEL", name, "names that differ: write NAME=MODEL")
    return configs


def read_model(text: str) -> dict[str, Any]:
    """Fields of ModelConfig that one MODEL of the command line says: [NAME=]MODEL[,OPTION=VALUE…].

    Raises:
        InvalidArgument: a part is empty, an option is unknown or stands twice, or its value is no such thing.
    """
    head, *parts = _COMMA.split(text)
    name, equals, model = head.partition("=")
    if not equals:
        name, model = "", head
    if not model or (equals and not name):
        raise InvalidArgument("MODEL", text, GRAMMAR)
    fields: dict[str, Any] = {"model": model, "name": name}
    for part in parts:
        option, _, value = part.partition("=")
        field = option.replace("-", "_")
        if field not in _OPTIONS:
            raise unknown_field(f"an option of {text}", option, _OPTIONS)
        if field in fields:
            raise InvalidArgument(f"{option} of {text}", value, "one value")
        try:
            fields[field] = _OPTIONS[field].value(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{option} of {text}", value, error.allowed) from None
    return fields


def fitted(config: ModelConfig, options: argparse.Namespace) -> ModelConfig:
    """The configuration, where one --max-length for several models is more than this one was made for.

    It is lowered to the model's own length then, and the log says so. The model's files are looked at, and
    downloaded if necessary.

    Raises:
        ModelError, NotSupported: there is no such model, or nothing reads it.
    """
    shared = getattr(options, "max_length", None)
    if len(options.models) == 1 or config.max_length is None or config.max_length != shared:
        return config
    _, info = inspect_model(config.model, config.backend, config.revision, config.token)
    if config.max_length <= info.max_length:
        return config
    logger.warning(
        "%s was made for %d tokens: --max-length %d is lowered to that for it",
        config.installed_name,
        info.max_length,
        config.max_length,
    )
    return msgspec.structs.replace(config, max_length=info.max_length)
