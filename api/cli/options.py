"""Command-line flags of the engine and of sampling, and the objects they become."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ...backends.worker import KV_CACHE_DTYPES, QUANTIZATIONS
from ...engine import ModelConfig, Policy
from ...engine.config import BLOCK_SIZES
from ...errors import InvalidArgument
from ...scheduler import SamplingParams

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


_SAMPLING_NUMBERS: Mapping[str, tuple[Callable[[str], int | float], str]] = {
    "n": (int, "outputs per prompt"),
    "temperature": (float, "0 always takes the most likely token"),
    "top_k": (int, "keep the K most likely tokens; 0 keeps all"),
    "top_p": (float, "keep the most likely tokens that together have this probability"),
    "min_p": (float, "keep tokens at least this likely compared with the most likely one"),
    "repetition_penalty": (float, "above 1 makes tokens that occurred less likely"),
    "presence_penalty": (float, "subtracted once from tokens that were generated"),
    "frequency_penalty": (float, "subtracted for each time a token was generated"),
    "no_repeat_ngram_size": (int, "no run of so many tokens occurs twice; 0 is off"),
    "seed": (int, "makes sampling repeatable"),
    "max_new_tokens": (int, "longest output in tokens"),
    "min_new_tokens": (int, "shortest output in tokens"),
    "top_logprobs": (int, "alternatives reported for each token"),
    "prompt_logprobs": (int, "alternatives reported for each token of the prompt"),
}
_SAMPLING_SWITCHES = {
    "suppress_repetition_in_generation": "apply the repetition penalty to generated tokens only",
    "ignore_eos": "go on after the end-of-sequence token",
    "include_stop_in_output": "leave the stop token or stop string in the text",
    "logprobs": "report the log-probability of each token",
}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of SamplingParams; what is not given keeps the model's default."""
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    add = group.add_argument
    for name, (kind, text) in _SAMPLING_NUMBERS.items():
        add(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X", help=text)
    for name, text in _SAMPLING_SWITCHES.items():
        add(f"--{name.replace('_', '-')}", action="store_true", help=text)
    # --max-length is the engine's.
    add(
        "--max-total-tokens",
        dest="sampling_max_length",
        type=int,
        metavar="N",
        help="longest prompt and output together, of one request",
    )
    add(
        "--min-total-tokens",
        dest="min_length",
        type=int,
        metavar="N",
        help="shortest prompt and output together",
    )
    add("--stop", action="append", metavar="TEXT", help="ends the output; may be given several times")
    add("--stop-token-ids", type=token_ids, metavar="ID,ID", help="tokens that end the output")
    add(
        "--stop-words-ids",
        type=token_ids,
        action="append",
        metavar="ID,ID",
        help="a run of tokens that ends the output; may be given several times",
    )
    add("--eos-token-ids", type=token_ids, metavar="ID,ID", help="instead of the model's own")
    add(
        "--bad-words-ids",
        type=token_ids,
        action="append",
        metavar="ID,ID",
        help="a run of tokens that is never produced; may be given several times",
    )
    add("--allowed-token-ids", type=token_ids, metavar="ID,ID", help="nothing else is produced")
    add(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="ID=X",
        help="added to a token's logit, -100 to 100; may be given several times",
    )
    add(
        "--keep-special-tokens",
        dest="skip_special_tokens",
        action="store_false",
        help="show special tokens in the text",
    )


def sampling_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of SamplingParams that were given as flags."""
    given = {
        name: value
        for name, value in vars(options).items()
        if name in SamplingParams.__struct_fields__ and name != "max_length"
    }
    for name in ("stop", "stop_words_ids", "bad_words_ids"):
        if name in given:
            given[name] = tuple(given[name])
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    if "sampling_max_length" in options:
        given["max_length"] = options.sampling_max_length
    return given


def sampling_params(fields: Mapping[str, Any]) -> SamplingParams:
    """SamplingParams from fields by name.

    Raises:
        InvalidArgument: a field does not exist, or its value lies outside its range.
    """
    for name in fields:
        if name not in SamplingParams.__struct_fields__:
            known = ", ".join(SamplingParams.__struct_fields__)
            raise InvalidArgument("sampling parameter", name, known)
    return SamplingParams(**fields)


def _one_of(values: Any) -> str:
    return ", ".join(map(str, values))
