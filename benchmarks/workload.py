"""What a throughput measurement asks of the engine, as vLLM's flags describe it."""

import argparse
from pathlib import Path

import msgspec

from ..backends.worker import Tokenizer
from ..errors import InvalidArgument
from ..scheduler import SamplingParams
from .datasets import (
    Prompt,
    custom_prompts,
    plain_token_ids,
    prefix_repetition_prompts,
    random_prompts,
    sharegpt_prompts,
)
from .options import require_at_least

_FLAGS_OF = {
    "random": ("input_len", "output_len", "prefix_len", "random_range_ratio"),
    "prefix_repetition": (
        "prefix_repetition_prefix_len",
        "prefix_repetition_suffix_len",
        "prefix_repetition_num_prefixes",
        "prefix_repetition_output_len",
    ),
    "custom": ("dataset_path", "output_len"),
    "sharegpt": ("dataset_path", "output_len"),
}
"""Data set -> the flags that it understands; the others' are refused."""
_DATASET_FLAGS = sorted({flag for flags in _FLAGS_OF.values() for flag in flags})


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of the engine."""

    prompts: list[Prompt]
    n: int = 1
    detokenize: bool = True
    seed: int = 0

    def params(self, index: int) -> SamplingParams:
        """Sampling of one prompt: to the exact length, with noise that every run repeats."""
        return SamplingParams(
            n=self.n,
            temperature=1.0,
            ignore_eos=True,
            max_new_tokens=self.prompts[index].output_len,
            seed=self.seed + index,
        )


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the data sets, those of `vllm bench throughput`; what is not given is not set."""
    general = parser.add_argument_group("data set", argument_default=argparse.SUPPRESS)
    add = general.add_argument
    add("--dataset-name", choices=[*_FLAGS_OF, "prefix-repetition"], help="random without --dataset-path")
    add("--dataset-path", type=Path, help="file of a custom (JSON lines) or sharegpt data set")
    add("--input-len", type=int, help="prompt tokens of a random request, without its prefix")
    add("--output-len", type=int, help="tokens to generate, instead of what the data set says")
    add("--n", type=int, default=1, help="samples per prompt")
    add("--num-prompts", type=int, default=1000)
    add("--seed", type=int, default=0, help="of the data set and of sampling")
    add("--prefix-len", type=int, help="tokens that all random requests begin with")
    add("--random-range-ratio", type=float, help="lengths vary by this share to either side")
    group = parser.add_argument_group("prefix-repetition data set", argument_default=argparse.SUPPRESS)
    group.add_argument("--prefix-repetition-prefix-len", type=int, help="default 256")
    group.add_argument("--prefix-repetition-suffix-len", type=int, help="default 256")
    group.add_argument("--prefix-repetition-num-prefixes", type=int, help="default 10")
    group.add_argument("--prefix-repetition-output-len", type=int, help="default 128")


def make_workload(options: argparse.Namespace, tokenizer: Tokenizer, vocab_size: int) -> Workload:
    """The prompts that the flags describe.

    Raises:
        InvalidArgument: a value is out of range, or a flag does not belong to the data set.
    """
    require_at_least(options, num_prompts=1, n=1, seed=0)
    given = {flag: getattr(options, flag) for flag in _DATASET_FLAGS if flag in options}
    dataset = _dataset_name(options, given)
    prompts = _make_prompts(dataset, given, options, tokenizer, vocab_size)
    return Workload(
        prompts=prompts, n=options.n, detokenize=not options.disable_detokenize, seed=options.seed
    )


def _dataset_name(options: argparse.Namespace, given: dict[str, int]) -> str:
    default = "sharegpt" if "dataset_path" in given else "random"
    name = str(getattr(options, "dataset_name", default)).replace("-", "_")
    for flag, value in given.items():
        if flag not in _FLAGS_OF[name]:
            homes = [dataset for dataset, flags in _FLAGS_OF.items() if flag in flags]
            raise InvalidArgument(
                f"--{flag.replace('_', '-')}", str(value), f"only with the data set {' or '.join(homes)}"
            )
    return name


def _make_prompts(
    dataset: str,
    given: dict[str, int],
    options: argparse.Namespace,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> list[Prompt]:
    count, seed = options.num_prompts, options.seed
    if dataset in ("custom", "sharegpt"):
        if "dataset_path" not in given:
            raise InvalidArgument("--dataset-path", None, f"a file, for the data set {dataset}")
        read = custom_prompts if dataset == "custom" else sharegpt_prompts
        return read(options.dataset_path, tokenizer, count, output_len=given.get("output_len"), seed=seed)
    vocab = plain_token_ids(tokenizer, vocab_size)
    if dataset == "prefix_repetition":
        lengths = {flag.removeprefix("prefix_repetition_"): value for flag, value in given.items()}
        return prefix_repetition_prompts(vocab, count, seed=seed, **lengths)
    if "input_len" not in given:
        raise InvalidArgument("--input-len", None, "a number of tokens, for the data set random")
    return random_prompts(
        vocab,
        count,
        input_len=options.input_len,
        output_len=given.get("output_len", 128),
        prefix_len=given.get("prefix_len", 0),
        range_ratio=getattr(options, "random_range_ratio", 0.0),
        seed=seed,
    )
