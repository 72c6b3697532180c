"""`millstream serve`: models behind OpenAI's HTTP routes."""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engine import AsyncEngine, Policy
from ...errors import InvalidArgument
from ..server.app import create_app
from ..server.config import ServerConfig
from ..server.keys import ApiKey, keys_from_environment, load_keys
from ..server.logs import configure_logging
from ..server.metrics import ServerMetrics
from ..server.service import ModelService
from ..server.serving import run_server
from ..server.tracing import start_tracing
from .options import DEFAULT_MODEL, add_engine_flags
from .served_models import ADMISSION_FLAGS, GRAMMAR, MAX_QUEUED_REQUESTS, fitted, model_configs
from .terminal import loading_line

_LOG_LEVELS = ("debug", "info", "warning", "error")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `serve`."""
    parser.add_argument(
        "models",
        nargs="*",
        default=[DEFAULT_MODEL],
        metavar=GRAMMAR,
        help="folder, hub id or bundled name, under a NAME of its own and with options for it alone: the "
        "engine and admission flags without their dashes, as in small=./model,max_length=1024,threads=2; the "
        "first model is the one of requests that name none",
    )
    _add_server_flags(parser)
    _add_key_flags(parser)
    add_engine_flags(parser)
    add_engine_flags(parser, "admission", ADMISSION_FLAGS)


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--host", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=int, metavar="N", help="8000; 0 takes a free one")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM file; with --tls-key: serve over TLS")
    add("--tls-key", type=Path, metavar="FILE")
    add(
        "--cors-origin",
        dest="cors_origins",
        action="append",
        metavar="ORIGIN",
        help='may be repeated; or "*"',
    )
    add(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        metavar="NAME",
        help="a name that the server answers to, beside this machine's own (any with keys); may be repeated",
    )
    add("--head-seconds", type=float, metavar="SECONDS", help="for the head of a request to be there")
    add("--body-seconds", type=float, metavar="SECONDS", help="without any of a request's body")
    add("--max-connections", type=int, metavar="N", help="at the same time")
    add("--max-connections-per-address", type=int, metavar="N", help="of one client or proxy")
    add("--max-body-bytes", type=int, metavar="N", help="largest request body")
    add("--request-timeout", type=float, metavar="SECONDS", help="of requests that name none")
    add("--keep-alive-seconds", type=float, metavar="SECONDS", help="between comments on a silent stream")
    add("--drain-seconds", type=float, metavar="SECONDS", help="for requests in flight after SIGTERM")
    add("--stall-seconds", type=float, metavar="SECONDS", help="without a step until /health fails")
    add("--max-stored-responses", type=int, metavar="N", help="kept for previous_response_id")
    add("--vllm-metrics", action="store_true", help="offer vLLM's metric names, too")
    add("--protect-metrics", action="store_true", help="ask for a key at /metrics")
    add(
        "--warn-unknown-fields",
        dest="refuse_unknown_fields",
        action="store_false",
        help="drop fields that are not known, with a warning, instead of refusing the request",
    )
    add("--chat-template", dest="template_file", type=Path, metavar="FILE", help="replaces the models' own")
    add("--trust-request-templates", action="store_true", help="let requests bring Jinja source of their own")
    add("--log-prompts", action="store_true", help="allow prompts and outputs in the log")
    logs = parser.add_argument_group("logs and traces")
    logs.add_argument("--log-level", choices=_LOG_LEVELS, default="info")
    logs.add_argument("--log-format", choices=("text", "json"), default="text")
    logs.add_argument("--otlp-traces-endpoint", metavar="URL", help="send OpenTelemetry traces there")


def _add_key_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "keys", "Without any, no key is asked for. MILLSTREAM_API_KEY and MILLSTREAM_ADMIN_KEY are read, too."
    )
    group.add_argument("--api-keys", type=Path, metavar="FILE", help="YAML or JSON list of names and keys")


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    keys, admin_key = _keys(options.api_keys)
    config = server_config(options, keys, admin_key)
    configure_logging(options.log_level, json=options.log_format == "json", prompts=config.log_prompts)
    endpoint = options.otlp_traces_endpoint
    tracing = None if endpoint is None else start_tracing(endpoint)
    engine = AsyncEngine()
    metrics = ServerMetrics(engine, config)
    defaults = model_defaults(keys)
    service = ModelService(engine, metrics, chat_template=config.chat_template, defaults=defaults)
    configs = model_configs(options, defaults)
    app = create_app(service, config, metrics, tracing)

    async def load() -> None:
        fitting = [await asyncio.to_thread(fitted, config, options) for config in configs]
        await service.install(fitting)
        for model in fitting:
            with loading_line(model.installed_name) as progress:
                await service.start(model, progress=progress)

    try:
        return run_server(app, config, prepare=load)
    finally:
        if tracing is not None:
            tracing.close()


def _keys(file: Path | None) -> tuple[tuple[ApiKey, ...], str | None]:
    found = keys_from_environment(os.environ)
    return (*(() if file is None else load_keys(file, os.environ)), *found.api_keys), found.admin_key


def server_config(
    options: argparse.Namespace, keys: Sequence[ApiKey] = (), admin_key: str | None = None
) -> ServerConfig:
    """The server's configuration that the flags describe.

    Raises:
        InvalidArgument: a value lies outside its range, or the template's file cannot be read.
    """
    given = {name: value for name, value in vars(options).items() if name in ServerConfig.__struct_fields__}
    given["api_keys"], given["admin_key"] = tuple(keys), admin_key
    for repeated in ("cors_origins", "allowed_hosts"):
        if repeated in given:
            given[repeated] = tuple(given[repeated])
    template: Path | None = getattr(options, "template_file", None)
    if template is not None:
        try:
            given["chat_template"] = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                "--chat-template", str(template), f"a readable text file ({error})"
            ) from None
    return ServerConfig(**given)


def model_defaults(keys: Sequence[ApiKey] = ()) -> dict[str, Any]:
    """Fields of ModelConfig where a server differs from a program that embeds the engine.

    Its queue is bounded, and with API keys models are shared fairly between them.
    """
    defaults: dict[str, Any] = {"max_queued_requests": MAX_QUEUED_REQUESTS}
    if keys:
        defaults["policy"] = Policy.FAIR
        defaults["tenant_weights"] = {key.name: key.weight for key in keys}
    return defaults
