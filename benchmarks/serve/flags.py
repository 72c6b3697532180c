"""The command's flags: those of `vllm bench serve`, and a few beyond it."""

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ...api.cli.terminal import CommandParser
from ...errors import NotSupported
from .endpoints import PATHS
from .statistics import METRICS

DATASET_FLAGS: Mapping[str, Mapping[str, str]] = {
    "random": {
        "random_input_len": "input_len",
        "random_output_len": "output_len",
        "random_prefix_len": "prefix_len",
        "random_range_ratio": "range_ratio",
    },
    "prefix_repetition": {
        "prefix_repetition_prefix_len": "prefix_len",
        "prefix_repetition_suffix_len": "suffix_len",
        "prefix_repetition_num_prefixes": "num_prefixes",
        "prefix_repetition_output_len": "output_len",
    },
    "sonnet": {
        "sonnet_input_len": "input_len",
        "sonnet_output_len": "output_len",
        "sonnet_prefix_len": "prefix_len",
        "dataset_path": "path",
    },
    "custom": {"custom_output_len": "output_len", "dataset_path": "path"},
    "sharegpt": {"sharegpt_output_len": "output_len", "dataset_path": "path"},
}
"""Data set -> the flags that it understands -> their fields; the others' flags are refused."""
SAMPLING = (
    ("temperature", float),
    ("top_p", float),
    ("top_k", int),
    ("min_p", float),
    ("frequency_penalty", float),
    ("presence_penalty", float),
    ("repetition_penalty", float),
)
OBJECTIVES = ("ttft", "tpot", "e2el")


def make_parser() -> argparse.ArgumentParser:
    """The command's parser; flags of data sets are set only where they were given."""
    parser = CommandParser(
        prog="python -m millstream.benchmarks.serve",
        description="Send requests to a server with OpenAI's interface and measure what comes back.",
    )
    _add_server_flags(parser.add_argument_group("server"))
    _add_dataset_flags(parser)
    _add_traffic_flags(parser.add_argument_group("traffic"))
    _add_sampling_flags(parser.add_argument_group("sampling"))
    _add_report_flags(parser.add_argument_group("report"))
    return parser


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--backend", choices=list(PATHS), default="openai", help="which route is asked, and how")
    add("--base-url", metavar="URL", help="instead of --host and --port")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--endpoint", metavar="PATH", help=f"by default by the backend: {', '.join(PATHS.values())}")
    add(
        "--header",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="of every request; a key in OPENAI_API_KEY is sent unless Authorization is given here",
    )
    add("--insecure", action="store_true", help="do not verify the server's certificate")
    add("--model", help="name or path; by default the first model that the server lists")
    add("--served-model-name", metavar="NAME", help="what requests call the model, if not --model")
    add(
        "--tokenizer",
        metavar="MODEL",
        help="makes and counts prompts; by default the model's own if it is on this machine",
    )
    add("--request-timeout", type=float, default=21600, metavar="SECONDS", help="of one whole request")
    add(
        "--ready-check-timeout-sec",
        type=float,
        default=0,
        metavar="SECONDS",
        help="wait so long for a first request to succeed; 0 sends none",
    )


def _add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data set")
    group.add_argument("--dataset-name", choices=[*DATASET_FLAGS, "prefix-repetition"], default="random")
    group.add_argument("--num-prompts", type=int, default=1000, metavar="N")
    group.add_argument("--seed", type=int, default=0, help="of prompts, arrivals and cancellations")
    group.add_argument(
        "--prompt-format",
        choices=("text", "ids"),
        help="by default text where a tokenizer is known, else ids; chat takes text only",
    )
    group.add_argument(
        "--vocab-size",
        type=int,
        default=1000,
        metavar="N",
        help="made-up ids lie below this where no tokenizer is known",
    )
    own = parser.add_argument_group("lengths and files of data sets", argument_default=argparse.SUPPRESS)
    own.add_argument("--dataset-path", type=Path, metavar="FILE", help="of sharegpt, sonnet and custom")
    own.add_argument("--input-len", type=int, metavar="N", help="for any data set that has such a length")
    own.add_argument("--output-len", type=int, metavar="N", help="for any data set")
    for flags in DATASET_FLAGS.values():
        for flag in flags:
            if flag != "dataset_path":
                kind = float if flag == "random_range_ratio" else int
                own.add_argument(spelled(flag), type=kind, metavar="N")


def _add_traffic_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--request-rate", type=float, default=float("inf"), metavar="RPS", help="inf sends all at once")
    add("--burstiness", type=float, default=1.0, metavar="SHAPE", help="of the gamma distribution of gaps")
    add("--max-concurrency", type=int, metavar="N", help="requests at the same time; others wait here")
    add("--ramp-up-strategy", choices=("linear", "exponential"))
    add("--ramp-up-start-rps", type=float, metavar="RPS")
    add("--ramp-up-end-rps", type=float, metavar="RPS")
    add("--cancel-rate", type=float, default=0.0, metavar="SHARE", help="of requests that hang up, 0 to 1")
    add("--cancel-delay", type=float, metavar="SECONDS", help="they do so within this time; by default 1")
    add("--num-warmups", type=int, default=0, metavar="N", help="requests that are sent first, uncounted")


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    for name, kind in SAMPLING:
        group.add_argument(spelled(name), type=kind)
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="generate the whole length; on by default where prompts are made up",
    )
    group.add_argument("--extra-body", metavar="JSON", help="an object: further fields of every request")


def _add_report_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--percentile-metrics", metavar="NAMES", help=f"of {','.join(METRICS)}; by default the first four")
    add("--metric-percentiles", default="99", metavar="PERCENTS", help='like "50,90,99"')
    add("--goodput", nargs="+", metavar="METRIC:MS", help=f"objectives, of {', '.join(OBJECTIVES)}")
    add("--save-result", action="store_true", help="write the report as JSON")
    add("--save-detailed", action="store_true", help="in it, what each request did")
    add("--append-result", action="store_true", help="add a line to the file")
    add("--result-dir", type=Path, metavar="DIR", help="by default the current one")
    add("--result-filename", metavar="NAME", help="by default made of label, rate, model and date")
    add("--metadata", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for the file")
    add("--label", help="of the result; by default the backend")
    add("--request-id-prefix", metavar="TEXT", help="of X-Request-Id")
    add("--disable-tqdm", action="store_true", help="show no progress")


def require_client() -> None:
    """Raise NotSupported where the load generator's HTTP client is not installed."""
    if find_spec("aiohttp") is None:
        raise NotSupported("aiohttp is not installed: pip install aiohttp")


def spelled(flag: str) -> str:
    """A flag as it is typed."""
    return f"--{flag.replace('_', '-')}"
