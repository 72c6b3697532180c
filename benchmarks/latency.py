"""Measures how long one batch of requests takes from its start to its end.

python -m millstream.benchmarks.latency --model pyhelp --batch-size 8

Flags and report are those of `vllm bench latency`; as there, the prefix cache is off, because every
iteration asks the same.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..api.cli.options import add_engine_flags, model_config
from ..api.cli.terminal import CommandParser, command_status, counting_bar, loading_line
from ..engine import Engine
from ..errors import InvalidArgument
from .datasets import plain_token_ids, random_prompts
from .environment import write_report
from .options import require_at_least
from .throughput import report, serve
from .workload import Workload

PERCENTILES = (10, 25, 50, 75, 90, 99)


class LatencyReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for the whole batch; the fields of `vllm bench latency`."""

    avg_latency: float
    std_latency: float
    latencies: list[float]
    percentiles: dict[int, float]
    batch_size: int
    input_len: int
    output_len: int

    def lines(self) -> list[str]:
        """For people, and for programs that read what vLLM prints."""
        return [
            f"Avg latency: {self.avg_latency} seconds",
            f"Std latency: {self.std_latency} seconds",
            *(
                f"{percent}% percentile latency: {value} seconds"
                for percent, value in self.percentiles.items()
            ),
        ]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.latency",
        description="Measure how long one batch of requests takes.",
    )
    add = parser.add_argument
    add("--model", required=True, help="folder, hub id or bundled name")
    add("--input-len", type=int, default=32, metavar="N", help="prompt tokens")
    add("--output-len", type=int, default=128, metavar="N", help="tokens to generate")
    add("--batch-size", type=int, default=8, metavar="N", help="requests in the batch")
    add("--n", type=int, default=1, metavar="N", help="samples per prompt")
    add("--num-iters-warmup", type=int, default=10, metavar="N", help="iterations that are not counted")
    add("--num-iters", type=int, default=30, metavar="N", help="iterations")
    add("--disable-detokenize", action="store_true", help="ask for token ids only")
    add("--prefix-cache", action="store_true", help="keep the prefix cache on")
    add("--output-json", type=Path, metavar="FILE", help="write the figures and facts of the machine here")
    add_engine_flags(parser)
    return parser


def summarise(latencies: Sequence[float], options: argparse.Namespace) -> LatencyReport:
    """Mean, deviation and percentiles of the seconds measured."""
    values = np.asarray(latencies)
    return LatencyReport(
        avg_latency=float(values.mean()),
        std_latency=float(values.std()),
        latencies=list(latencies),
        percentiles={percent: float(np.percentile(values, percent)) for percent in PERCENTILES},
        batch_size=options.batch_size,
        input_len=options.input_len,
        output_len=options.output_len,
    )


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    require_at_least(options, batch_size=1, n=1, num_iters=1, num_iters_warmup=0)
    if options.prefix_cache and "enable_prefix_cache" in options:
        raise InvalidArgument("--prefix-cache", True, "not together with --no-prefix-cache")
    config = model_config(options, enable_prefix_cache=options.prefix_cache)
    name = config.installed_name
    with Engine() as engine:
        info = engine.install_model(config)
        prompts = random_prompts(
            plain_token_ids(engine.tokenizer(name), info.vocab_size),
            options.batch_size,
            input_len=options.input_len,
            output_len=options.output_len,
        )
        workload = Workload(prompts=prompts, n=options.n, detokenize=not options.disable_detokenize)
        with loading_line(name) as progress:
            engine.start_model(name, progress=progress)
        latencies: list[float] = []
        with counting_bar("iterations", options.num_iters_warmup + options.num_iters) as advance:
            for iteration in range(options.num_iters_warmup + options.num_iters):
                outcome = serve(engine, name, workload)
                report(workload, outcome, {})  # refuses to measure requests that failed
                if iteration >= options.num_iters_warmup:
                    latencies.append(outcome.seconds)
                advance(1)
    measured = summarise(latencies, options)
    for line in measured.lines():
        print(line)
    if options.output_json is not None:
        write_report(options.output_json, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
