"""Command-line flags of the engine and of sampling, and the objects they become."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from ...backends.worker import KV_CACHE_DTYPES, QUANTIZATIONS
from ...engine import ModelConfig, Policy
from ...engine.config import BLOCK_SIZES
from ...scheduler.sampling_fields import (
    BIASES,
    INTEGER,
    NUMBER,
    SAMPLING_FIELDS,
    SEED,
    SWITCH,
    TEXTS,
    TOKEN_IDS,
    TOKEN_RUNS,
    TOP_K,
    Kind,
    read_sampling_fields,
)

DEFAULT_MODEL = "pyhelp"

# Engine


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the model's configuration, all but the model's name; what is not given keeps its default."""
    group = parser.add_argument_group("engine", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    add("--backend", help="torch, llamacpp or auto")
    add("--device", help="cpu, cuda, cuda:1, … or auto")
    add("--dtype", help="of weights and cache: bfloat16, float16, float32 or auto")
    add("--quantization", help=f"of the weights, while they are loaded: {_one_of(QUANTIZATIONS)}")
    add("--kv-cache-dtype", help=f"of keys and values in the cache: {_one_of(KV_CACHE_DTYPES)}")
    add("--threads", type=int, metavar="N", help="0 uses all physical cores")
    add("--max-length", type=int, metavar="N", help="longest request in tokens, prompt and output together")
    add("--max-num-seqs", type=int, metavar="N", help="requests in one step")
    add("--max-num-batched-tokens", type=int, metavar="N", help="tokens in one step")
    add("--block-size", type=int, metavar="N", help=f"tokens in a cache block: {_one_of(BLOCK_SIZES)}")
    add("--num-blocks", type=int, metavar="N", help="blocks in the cache; default: what memory allows")
    add("--memory-fraction", type=float, metavar="F", help="share of the memory limit that may be used")
    add(
        "--no-prefix-cache",
        dest="enable_prefix_cache",
        action="store_false",
        help="compute every prompt from its start",
    )
    add("--policy", type=_policy, help=f"order of waiting requests: {_one_of(p.value for p in Policy)}")
    add("--revision", help="branch, tag or commit on the hub")
    add("--token", help="hub token; by default the one of the environment")


def model_config(options: argparse.Namespace, **defaults: Any) -> ModelConfig:
    """The configuration that the flags describe; `defaults` stand where no flag was given.

    Raises:
        InvalidArgument: a value lies outside its range.
    """
    given = {name: value for name, value in vars(options).items() if name in ModelConfig.__struct_fields__}
    return ModelConfig(**{**defaults, **given})


def _policy(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        allowed = _one_of(policy.value for policy in Policy)
        raise argparse.ArgumentTypeError(f"{text!r} is no policy; allowed: {allowed}") from None


# Sampling


def token_ids(text: str) -> tuple[int, ...]:
    """Token ids written as 1,2,3."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of token ids such as 1,2,3") from None


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no bias such as 42=-5.5") from None


_PREFIX = "sampling_"
"""Of the destinations: some fields have the names of the engine's flags."""
_FLAGS = {
    "max_new_tokens": ("--max-new-tokens", "--max-tokens"),
    # --max-length is the engine's.
    "max_length": ("--max-total-tokens",),
    "min_length": ("--min-total-tokens",),
    "skip_special_tokens": ("--keep-special-tokens",),
}
"""Of the fields whose flags are not their names."""
_INTEGER: dict[str, Any] = {"type": int, "metavar": "N"}
_RUNS: dict[str, Any] = {"type": token_ids, "metavar": "ID,ID", "action": "append"}
_ARGUMENTS: Mapping[Kind, dict[str, Any]] = {
    INTEGER: _INTEGER,
    TOP_K: _INTEGER,
    SEED: _INTEGER,
    NUMBER: {"type": float, "metavar": "X"},
    SWITCH: {"action": "store_true"},
    TOKEN_IDS: {"type": token_ids, "metavar": "ID,ID"},
    TOKEN_RUNS: _RUNS,
    TEXTS: {"metavar": "TEXT", "action": "append"},
    BIASES: {"type": _bias, "metavar": "ID=X", "action": "append"},
}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of SamplingParams; what is not given keeps the model's default."""
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    for field in SAMPLING_FIELDS:
        argument, text = dict(_ARGUMENTS[field.kind]), field.text
        if argument.get("action") == "append":
            text += "; may be given several times"
        if field.name == "skip_special_tokens":
            argument, text = {"action": "store_false"}, "show special tokens in the text"
        flags = _FLAGS.get(field.name, (f"--{field.name.replace('_', '-')}",))
        group.add_argument(*flags, dest=f"{_PREFIX}{field.name}", help=text, **argument)


def sampling_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingParams that were given as flags."""
    given = {
        name.removeprefix(_PREFIX): value for name, value in vars(options).items() if name.startswith(_PREFIX)
    }
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return read_sampling_fields(given)


def _one_of(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
