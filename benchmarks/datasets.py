"""Prompts to measure with: made up by rule, or read from a file; the data sets of vLLM's benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..backends.worker import Tokenizer
from ..errors import InvalidArgument

_SHAREGPT_SHORTEST = 4
_SHAREGPT_LONGEST_PROMPT = 1024
_SHAREGPT_LONGEST = 2048
"""Conversations outside of these lengths are left out, as they are in other engines' figures."""


@dataclass(frozen=True)
class Prompt:
    """One request to make."""

    token_ids: list[int]
    output_len: int
    """Tokens to generate, exactly."""


def random_prompts(
    vocab: Sequence[int],
    num_prompts: int,
    *,
    input_len: int,
    output_len: int,
    prefix_len: int = 0,
    range_ratio: float = 0.0,
    seed: int = 0,
) -> list[Prompt]:
    """A common random prefix, then tokens that differ from prompt to prompt.

    Lengths are uniform in [length * (1 - range_ratio), length * (1 + range_ratio)]; `vocab` are the ids to
    choose from. Within a prompt ids count up from a random place, as in vLLM's RandomDataset.

    Raises:
        InvalidArgument: a length or the ratio is out of range.
    """
    _require(input_len >= 0, "--input-len", input_len, "0 or more")
    _require(output_len >= 1, "--output-len", output_len, "1 or more")
    _require(prefix_len >= 0, "--prefix-len", prefix_len, "0 or more")
    _require(0 <= range_ratio < 1, "--random-range-ratio", range_ratio, "0 up to but not 1")
    low, high = floor(input_len * (1 - range_ratio)), ceil(input_len * (1 + range_ratio))
    _require(prefix_len + low >= 1, "--input-len", input_len, "at least one token with the shortest prompt")
    rng = np.random.default_rng(seed)
    prefix = _draw(rng, vocab, prefix_len)
    inputs = rng.integers(low, high, size=num_prompts, endpoint=True)
    shortest = max(floor(output_len * (1 - range_ratio)), 1)
    outputs = rng.integers(shortest, ceil(output_len * (1 + range_ratio)), size=num_prompts, endpoint=True)
    offsets = rng.integers(0, len(vocab), size=num_prompts)
    prompts = []
    for index, (length, output, offset) in enumerate(zip(inputs, outputs, offsets, strict=True)):
        first = int(offset) + index
        own = [vocab[(first + place) % len(vocab)] for place in range(int(length))]
        prompts.append(Prompt(prefix + own, int(output)))
    return prompts


def prefix_repetition_prompts(
    vocab: Sequence[int],
    num_prompts: int,
    *,
    prefix_len: int = 256,
    suffix_len: int = 256,
    num_prefixes: int = 10,
    output_len: int = 128,
    seed: int = 0,
) -> list[Prompt]:
    """`num_prefixes` random prefixes, each with as many random suffixes as go into `num_prompts`, shuffled.

    Raises:
        InvalidArgument: a length is out of range, or there are fewer prompts than prefixes.
    """
    for flag, value, least in (
        ("--prefix-repetition-prefix-len", prefix_len, 1),
        ("--prefix-repetition-suffix-len", suffix_len, 0),
        ("--prefix-repetition-num-prefixes", num_prefixes, 1),
        ("--prefix-repetition-output-len", output_len, 1),
    ):
        _require(value >= least, flag, value, f"{least} or more")
    _require(
        num_prefixes <= num_prompts,
        "--prefix-repetition-num-prefixes",
        num_prefixes,
        f"at most --num-prompts ({num_prompts})",
    )
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(num_prefixes):
        prefix = _draw(rng, vocab, prefix_len)
        for _ in range(num_prompts // num_prefixes):
            prompts.append(Prompt(prefix + _draw(rng, vocab, suffix_len), output_len))
    return [prompts[int(place)] for place in rng.permutation(len(prompts))]


def custom_prompts(
    path: Path, tokenizer: Tokenizer, num_prompts: int, *, output_len: int | None, seed: int = 0
) -> list[Prompt]:
    """The `prompt` texts of a file of JSON lines, in random order, through the chat template if there is one.

    A line's `output_tokens` says how much to generate unless `output_len` does. With fewer lines than
    `num_prompts`, some are repeated.

    Raises:
        InvalidArgument: a line is no such object, or nothing says how much to generate.
    """
    prompts = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_CustomRow)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                "--dataset-path", f"{path}:{number}", f"rows with a prompt ({error})"
            ) from error
        length = output_len if output_len is not None else row.output_tokens
        if length is None or length < 1:
            raise InvalidArgument("--output-len", length, f"1 or more, or output_tokens in {path}:{number}")
        prompts.append(Prompt(_encode_chat(tokenizer, row.prompt), length))
    return _sample(prompts, num_prompts, path, seed)


def sharegpt_prompts(
    path: Path, tokenizer: Tokenizer, num_prompts: int, *, output_len: int | None, seed: int = 0
) -> list[Prompt]:
    """First turns of ShareGPT conversations; the answer's length is how much to generate by default.

    Very short and very long ones are left out. With too few conversations, some are repeated.

    Raises:
        InvalidArgument: the file is no list of conversations, or none of them fits.
    """
    try:
        conversations = msgspec.json.decode(path.read_bytes(), type=list[_Conversation])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument("--dataset-path", str(path), f"a ShareGPT file ({error})") from error
    prompts: list[Prompt] = []
    rng = np.random.default_rng(seed)
    for place in rng.permutation(len(conversations)):
        turns = conversations[int(place)].conversations
        if len(prompts) == num_prompts:
            break
        if len(turns) < 2:
            continue
        token_ids = tokenizer.encode(turns[0].value)
        answer = len(tokenizer.encode(turns[1].value, add_special_tokens=False))
        length = answer if output_len is None else output_len
        long_enough = len(token_ids) >= _SHAREGPT_SHORTEST and (output_len or answer) >= _SHAREGPT_SHORTEST
        too_long = len(token_ids) > _SHAREGPT_LONGEST_PROMPT or len(token_ids) + length > _SHAREGPT_LONGEST
        if long_enough and not too_long:
            prompts.append(Prompt(token_ids, length))
    return _sample(prompts, num_prompts, path, seed)


def plain_token_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Ids that a made-up prompt may consist of: all but the special ones, as far as those are known."""
    special = set(tokenizer.eos_token_ids)
    return [token_id for token_id in range(vocab_size) if token_id not in special]


class _CustomRow(msgspec.Struct):
    prompt: str
    output_tokens: int | None = None


class _Turn(msgspec.Struct):
    value: str


class _Conversation(msgspec.Struct):
    conversations: list[_Turn] = []


def _encode_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.chat_template is None:
        return tokenizer.encode(text)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return tokenizer.encode(prompt, add_special_tokens=False)


def _draw(rng: np.random.Generator, vocab: Sequence[int], count: int) -> list[int]:
    return [vocab[int(place)] for place in rng.integers(0, len(vocab), size=count)]


def _sample(prompts: Sequence[Prompt], count: int, path: Path, seed: int) -> list[Prompt]:
    """`count` prompts in random order, each at least once where there are not more of them."""
    if not prompts:
        raise InvalidArgument("--dataset-path", str(path), "a file with at least one usable prompt")
    rng = np.random.default_rng(seed)
    places = [int(place) for place in rng.permutation(len(prompts))][:count]
    places += [int(place) for place in rng.integers(0, len(prompts), size=count - len(places))]
    return [prompts[place] for place in places]


def _require(holds: bool, flag: str, value: Any, allowed: str) -> None:
    if not holds:
        raise InvalidArgument(flag, value, allowed)
