"""Command-line flags of the engine and of sampling, and the objects they become."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...backends.bundled import BUNDLED_MODELS
from ...backends.worker import KV_CACHE_DTYPES, QUANTIZATIONS
from ...engine import ModelConfig, Policy
from ...engine.config import BLOCK_SIZES
from ...errors import InvalidArgument
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

# The model's name


MODEL_HELP = f"folder, hub id or bundled name (default {DEFAULT_MODEL})"


def add_model_argument(parser: argparse.ArgumentParser, text: str = MODEL_HELP) -> None:
    """MODEL as the command's argument, or --model; without either, `model_config` takes the bundled model."""
    add = partial(parser.add_argument, action=_OneModel, metavar="MODEL", default=argparse.SUPPRESS)
    add("model", nargs="?", help=text)
    add("--model", help="the same")


class _OneModel(argparse.Action):
    """Stores the model's name; two names are refused."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        options: argparse.Namespace,
        value: Any,
        flag: str | None = None,
    ) -> None:
        if "model" in options and options.model != value:
            parser.error(f"MODEL is {value!r} and {options.model!r}; allowed: one of them")
        options.model = value


def reads_like_a_model(text: str) -> bool:
    """Whether an argument that may be a prompt is a model: a bundled name, a path, or owner/name of a hub."""
    return text in BUNDLED_MODELS or _MODEL.fullmatch(text) is not None


_MODEL = re.compile(r"[^\s/]*/\S*|[^\s]+\.gguf(:\S+)?")


# Engine


@dataclass(frozen=True, slots=True)
class EngineFlag:
    """A field of ModelConfig as a flag, and as an option of one model among several."""

    field: str
    text: str
    metavar: str | None = None
    read: Callable[[str], Any] = str

    def value(self, text: str) -> Any:
        """What the text of an option says.

        Raises:
            InvalidArgument: it is not of the field's kind.
        """
        try:
            return self.read(text)
        except ValueError:
            kind = "an integer" if self.read is int else "a number"
            raise InvalidArgument(self.field, text, kind) from None
        except argparse.ArgumentTypeError as error:
            raise InvalidArgument(self.field, text, str(error).partition("allowed: ")[2]) from None


def _one_of(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def _policy(text: str) -> Policy:
    try:
        return Policy(text)
    except ValueError:
        allowed = _one_of(policy.value for policy in Policy)
        raise argparse.ArgumentTypeError(f"{text!r} is no policy; allowed: {allowed}") from None


def _number_or_none(text: str) -> int | None:
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no bound; allowed: an integer, none") from None


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text!r} is no switch; allowed: on, off")
    return text == "on"


ENGINE_FLAGS = (
    EngineFlag("backend", "torch, llamacpp or auto"),
    EngineFlag("device", "cpu, cuda, cuda:1, … or auto"),
    EngineFlag("dtype", "of weights and cache: bfloat16, float16, float32 or auto"),
    EngineFlag("quantization", f"of the weights, while they are loaded: {_one_of(QUANTIZATIONS)}"),
    EngineFlag("kv_cache_dtype", f"of keys and values in the cache: {_one_of(KV_CACHE_DTYPES)}"),
    EngineFlag("batch_invariant", "on gives the same bits in every batch", "on|off", _switch),
    EngineFlag("threads", "0: as many as are fastest, by measurement", "N", int),
    EngineFlag("max_length", "longest request in tokens, prompt and output together", "N", int),
    EngineFlag(
        "default_max_new_tokens",
        "longest output where a request sets no bound; none: what is left of max_length",
        "N|none",
        _number_or_none,
    ),
    EngineFlag("max_num_seqs", "requests in one step", "N", int),
    EngineFlag("max_num_batched_tokens", "tokens in one step", "N", int),
    EngineFlag("block_size", f"tokens in a cache block: {_one_of(BLOCK_SIZES)}", "N", int),
    EngineFlag("num_blocks", "blocks in the cache; default: what requests can use", "N", int),
    EngineFlag("memory_fraction", "share of the memory limit that may be used", "F", float),
    EngineFlag("enable_prefix_cache", "off computes every prompt from its start", "on|off", _switch),
    EngineFlag("policy", f"order of waiting requests: {_one_of(p.value for p in Policy)}", None, _policy),
    EngineFlag("revision", "branch, tag or commit on the hub"),
    EngineFlag("token", "hub token; by default the one of the environment"),
)
"""What every command that loads a model takes."""
_SWITCHES = {
    "batch_invariant": (
        "--batch-invariant",
        "store_true",
        "the same bits in every batch, or refuse the model",
    ),
    "enable_prefix_cache": ("--no-prefix-cache", "store_false", "compute every prompt from its start"),
}
"""Fields that are on or off -> the flag that changes their default, what it does, and its help."""


def add_engine_flags(
    parser: argparse.ArgumentParser, title: str = "engine", flags: Sequence[EngineFlag] = ENGINE_FLAGS
) -> None:
    """Flags of the model's configuration, all but the model's name; what is not given keeps its default."""
    group = parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
    for flag in flags:
        if flag.read is _switch:
            name, action, text = _SWITCHES[flag.field]
            group.add_argument(name, dest=flag.field, action=action, help=text)
        else:
            name = f"--{flag.field.replace('_', '-')}"
            group.add_argument(name, type=flag.read, metavar=flag.metavar, help=flag.text)


def model_config(options: argparse.Namespace, **defaults: Any) -> ModelConfig:
    """The configuration that the flags describe; `defaults` stand where no flag was given.

    Raises:
        InvalidArgument: a value lies outside its range.
    """
    given = {name: value for name, value in vars(options).items() if name in ModelConfig.__struct_fields__}
    return ModelConfig(**{"model": DEFAULT_MODEL, **defaults, **given})


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
