"""Measures how many tokens an engine computes when all requests are there from the start.

python -m millstream.benchmarks.throughput --model pyhelp --input-len 128 --output-len 64 --num-prompts 64

Flags and report are those of `vllm bench throughput`.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import msgspec

from ..api.cli.options import add_engine_flags, model_config
from ..api.cli.running import run_async
from ..api.cli.terminal import CommandParser, command_status, counting_bar, loading_line
from ..engine import AsyncEngine, Engine, EngineStats, FinishReason, ModelConfig, OutputStream, RequestOptions
from ..errors import MillstreamError
from .environment import write_report
from .workload import Workload, add_workload_flags, make_workload


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; the first five fields are those of `vllm bench throughput`."""

    elapsed_time: float
    num_requests: int
    total_num_tokens: int
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    cached_prompt_tokens: int
    mean_batch_size: float
    preemptions: int
    outside_worker: float
    """Share of the time in which the worker did not compute."""
    arguments: dict[str, str | int | float | bool]
    """Flags that were given."""

    def lines(self) -> list[str]:
        """For people, and for programs that read what vLLM prints."""
        return [
            f"Throughput: {self.requests_per_second:.2f} requests/s, "
            f"{self.tokens_per_second:.2f} total tokens/s, "
            f"{self.output_tokens_per_second:.2f} output tokens/s",
            f"Total num prompt tokens:  {self.prompt_tokens}",
            f"Total num output tokens:  {self.output_tokens}",
            f"Cached prompt tokens:     {self.cached_prompt_tokens}",
            f"Mean batch size:          {self.mean_batch_size:.1f} sequences, {self.preemptions} preemptions",
            f"Outside of the worker:    {self.outside_worker:.2%} of the time",
        ]


class Outcome(msgspec.Struct, frozen=True):
    """The streams of all samples, read to their ends, and the seconds it took."""

    seconds: float
    streams: list[OutputStream]
    worker_seconds: float
    stats: EngineStats


def serve(
    engine: Engine, name: str, workload: Workload, advance: Callable[[int], None] = lambda samples: None
) -> Outcome:
    """All requests at once, waited for in this thread; `advance` is told how many more samples are done."""
    streams: list[OutputStream] = []
    options = RequestOptions(detokenize=workload.detokenize)
    options = RequestOptions(detokenize=workload.detokenize)
    options = RequestOptions(detokenize=workload.detokenize)
    before = engine.stats(name).worker_seconds
    started = perf_counter()
    for index, prompt in enumerate(workload.prompts):
        handle, _ = engine.start_request(name, prompt.token_ids, workload.params(index), options)
        streams.extend(handle.streams)
    for stream in streams:
        stream.wait_finished()
        advance(1)
    seconds = perf_counter() - started
    stats = engine.stats(name)
    return Outcome(seconds, streams, stats.worker_seconds - before, stats)


async def serve_async(engine: AsyncEngine, name: str, workload: Workload) -> Outcome:
    """All requests at once, each sample read by a coroutine of its own."""
    streams: list[OutputStream] = []

    async def read(stream: OutputStream) -> None:
        async for _ in stream:
            pass

    options = RequestOptions(detokenize=workload.detokenize)
    options = RequestOptions(detokenize=workload.detokenize)
    options = RequestOptions(detokenize=workload.detokenize)
    before = engine.stats(name).worker_seconds
    started = perf_counter()
    for index, prompt in enumerate(workload.prompts):
        handle, _ = await engine.start_request(name, prompt.token_ids, workload.params(index), options)
        streams.extend(handle.streams)
    await asyncio.gather(*(read(stream) for stream in streams))
    seconds = perf_counter() - started
    stats = engine.stats(name)
    return Outcome(seconds, streams, stats.worker_seconds - before, stats)


def report(workload: Workload, outcome: Outcome, arguments: dict[str, str | int | float | bool]) -> Report:
    """Figures of a run.

    Raises:
        MillstreamError: a request did not reach the length it was to have.
    """
    for stream in outcome.streams:
        if stream.finish_reason is not FinishReason.LENGTH:
            why = stream.error or stream.finish_reason
            raise MillstreamError(
                f"a request of {stream.num_prompt_tokens} prompt tokens was not served: {why}"
            )
    prompt_tokens = sum(len(prompt.token_ids) for prompt in workload.prompts)
    output_tokens = sum(stream.num_output_tokens for stream in outcome.streams)
    total, seconds = prompt_tokens + output_tokens, outcome.seconds
    return Report(
        elapsed_time=seconds,
        num_requests=len(workload.prompts),
        total_num_tokens=total,
        requests_per_second=len(workload.prompts) / seconds,
        tokens_per_second=total / seconds,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        output_tokens_per_second=output_tokens / seconds,
        cached_prompt_tokens=sum(stream.num_cached_tokens for stream in outcome.streams[:: workload.n]),
        mean_batch_size=outcome.stats.mean_batch_size,
        preemptions=outcome.stats.preemptions,
        outside_worker=max(1 - outcome.worker_seconds / seconds, 0.0),
        arguments=arguments,
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.throughput",
        description="Measure throughput with all requests there from the start.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id or bundled name")
    add("--async-engine", action="store_true", default=False, help="read each request in a coroutine")
    add("--disable-detokenize", action="store_true", default=False, help="ask for token ids only")
    add("--output-json", type=Path, help="write the figures and facts of the machine here")
    add_workload_flags(parser)
    add_engine_flags(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    config = model_config(options)
    measured = (
        run_async(_measure_async(config, options)) if options.async_engine else _measure(config, options)
    )
    for line in measured.lines():
        print(line)
    if "output_json" in options:
        write_report(options.output_json, measured)
    return 0


def _measure(config: ModelConfig, options: argparse.Namespace) -> Report:
    name = config.installed_name
    with Engine() as engine:
        info = engine.install_model(config)
        workload = make_workload(options, engine.tokenizer(name), info.vocab_size)
        with loading_line(name) as progress:
            engine.start_model(name, progress=progress)
        with counting_bar("samples", workload.n * len(workload.prompts)) as advance:
            outcome = serve(engine, name, workload, advance)
        return report(workload, outcome, _arguments(options))


async def _measure_async(config: ModelConfig, options: argparse.Namespace) -> Report:
    name = config.installed_name
    async with AsyncEngine() as engine:
        info = await engine.install_model(config)
        workload = make_workload(options, engine.tokenizer(name), info.vocab_size)
        with loading_line(name) as progress:
            await engine.start_model(name, progress=progress)
        return report(workload, await serve_async(engine, name, workload), _arguments(options))


def _arguments(options: argparse.Namespace) -> dict[str, str | int | float | bool]:
    """The flags, but for the token, which is nobody's business."""
    return {
        name: value if isinstance(value, (int, float)) else str(value)
        for name, value in vars(options).items()
        if name not in ("token", "output_json")
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
