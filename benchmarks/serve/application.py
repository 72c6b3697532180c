"""The real server without a model: `python -m millstream.benchmarks.serve.application --step-ms 8`.

Routes, middleware, admission, scheduler, detokeniser and text are those of `millstream serve`. The worker
alone is replaced: every step takes the same time and answers with the tokens of a text. What a client takes
from it is what the server costs.
"""

import argparse
import sys
from collections.abc import Sequence
from time import sleep

from fastapi import FastAPI

from ...api.cli.terminal import CommandParser, command_status
from ...api.server.app import create_app
from ...api.server.config import ServerConfig
from ...api.server.logs import configure_logging
from ...api.server.metrics import ServerMetrics
from ...api.server.service import ModelService
from ...api.server.serving import Prepare, run_server
from ...backends.fake import FakeBackend, FakeWorker
from ...backends.worker import ModelInfo, Progress, WorkerConfig, WorkerSpec
from ...engine import AsyncEngine, ModelConfig
from ...errors import InvalidArgument
from ...scheduler import Batch, StepResult, Wants
from ..overhead import sample_text
from .tokenizers import load_tokenizer

NAME = "replay"
_BLOCK_SIZE = 16


class PacedWorker(FakeWorker):
    """Sleeps in each step as a model on another device would, and answers with a text's tokens."""

    def __init__(self, spec: WorkerSpec, text: Sequence[int], step_seconds: float) -> None:
        super().__init__(spec)
        self._text = text
        self._step_seconds = step_seconds

    def execute(self, batch: Batch) -> StepResult:
        """Each chunk gets the token of the text that belongs to its position."""
        if self._step_seconds:
            sleep(self._step_seconds)
        text, length = self._text, len(self._text)
        return StepResult(
            [
                text[(chunk.start + len(chunk.tokens)) % length] if chunk.wants is Wants.TOKEN else None
                for chunk in batch.chunks
            ]
        )


class PacedBackend(FakeBackend):
    """The fake backend with such a worker, and the bundled model's tokenizer and text."""

    def __init__(self, step_seconds: float) -> None:
        known = load_tokenizer("pyhelp")
        self._text = sample_text(known.tokenizer)
        self._step_seconds = step_seconds
        super().__init__(vocab_size=known.vocab_size, max_length=1 << 20, tokenizer=known.tokenizer)

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> PacedWorker:
        """A worker with this configuration's numbers."""
        return PacedWorker(super().load(info, config, progress).spec, self._text, self._step_seconds)


def paced_model(
    step_seconds: float,
    *,
    max_num_seqs: int = 256,
    max_length: int = 2048,
    max_queued_requests: int | None = None,
) -> ModelConfig:
    """A model that takes `step_seconds` for each step, with blocks for `max_num_seqs` whole requests."""
    return ModelConfig(
        model=NAME,
        backend=PacedBackend(step_seconds),
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
