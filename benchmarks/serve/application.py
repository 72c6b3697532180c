"""The real server without a model: `python -m millstream.benchmarks.serve.application --step-ms 8`.

Routes, middleware, admission, scheduler, detokeniser and text are those of `millstream serve`. The worker
alone is replaced: every step takes the same time and answers with the tokens of a text. What a client takes
from it is what the server costs.
"""

import argparse
import sys
from collections.abc import Sequence

from fastapi import FastAPI

from ...api.cli.terminal import CommandParser, command_status
from ...api.server.app import create_app
from ...api.server.config import ServerConfig
from ...api.server.logs import configure_logging
from ...api.server.metrics import ServerMetrics
from ...api.server.service import ModelService
from ...api.server.serving import Prepare, run_server
from ...engine import AsyncEngine, ModelConfig
from ...errors import InvalidArgument
from ..replay import ReplayBackend, sample_text
from .tokenizers import load_tokenizer

NAME = "replay"
_BLOCK_SIZE = 16


def paced_model(
    step_seconds: float,
    *,
    max_num_seqs: int = 256,
    max_length: int = 2048,
    max_queued_requests: int | None = None,
) -> ModelConfig:
    """A model that takes `step_seconds` for each step, with blocks for `max_num_seqs` whole requests."""
    known = load_tokenizer("pyhelp")
    backend = ReplayBackend(
        known.tokenizer,
        sample_text(known.tokenizer),
        vocab_size=known.vocab_size,
        step_seconds=step_seconds,
    )
    return ModelConfig(
        model=NAME,
        backend=backend,
        max_length=max_length,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(2048, 2 * max_num_seqs),
        block_size=_BLOCK_SIZE,
        num_blocks=max_num_seqs * -(-max_length // _BLOCK_SIZE) + 1,
        max_queued_requests=max_queued_requests,
        warmup=False,
    )


def make_application(model: ModelConfig, config: ServerConfig) -> tuple[FastAPI, Prepare]:
    """The application for `run_server`, and what loads its model."""
    engine = AsyncEngine()
    metrics = ServerMetrics(engine, config)
    service = ModelService(engine, metrics)

    async def load() -> None:
        await service.load(model)

    return create_app(service, config, metrics), load


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.serve.application",
        description="Serve like `millstream serve`, with a worker that only takes its time.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which the log names")
    parser.add_argument("--step-ms", type=float, default=8.0, help="time of the worker's step; 0 takes none")
    parser.add_argument("--max-num-seqs", type=int, default=256, metavar="N")
    parser.add_argument(
        "--max-length", type=int, default=2048, metavar="N", help="longest request, in tokens"
    )
    parser.add_argument("--max-queued-requests", type=int, metavar="N", help="over so many: 429")
    return parser


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    if not 0 <= options.step_ms < float("inf"):
        raise InvalidArgument("--step-ms", options.step_ms, "milliseconds, 0 or more")
    configure_logging("info", json=True)
    model = paced_model(
        options.step_ms / 1000,
        max_num_seqs=options.max_num_seqs,
        max_length=options.max_length,
        max_queued_requests=options.max_queued_requests,
    )
    config = ServerConfig(port=options.port)
    app, load = make_application(model, config)
    return run_server(app, config, prepare=load)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
