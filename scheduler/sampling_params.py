"""SamplingParams: what one request asks of generation, validated when it is made."""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import msgspec

from ..errors import InvalidArgument

MAX_TOP_LOGPROBS = 20
MAX_N = 128
MAX_SEED = 2**63 - 1


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Generation parameters of one request.

    Names follow vLLM and transformers; DashInfer's names are translated at its face. Greedy decoding is
    `temperature=0` (or `top_k=1`). Lengths are in tokens; `max_length` and `min_length` count prompt and
    output together, `max_new_tokens` and `min_new_tokens` the output alone; where both maxima are given
    the smaller bound holds. With neither, a request runs until the model's length is reached.

    Raises:
        InvalidArgument: a value has the wrong type or lies outside its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    suppress_repetition_in_generation: bool = False
    """Apply the repetition penalty to generated tokens only, leaving the prompt's tokens alone."""
    no_repeat_ngram_size: int = 0
    seed: int | None = None
    """Seed of the request's noise; None lets the engine draw one."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_ids: tuple[int, ...] | None = None
    """End-of-sequence ids; None means the model's own."""
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    stop_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that end the request when the output ends with one of them."""
    stop: tuple[str, ...] = ()
    """Strings that end the request when the output text contains one of them."""
    include_stop_in_output: bool = False

    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that are never produced."""
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None

    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    """Number of alternatives to report for each prompt token; None reports none, 0 only the token's own."""
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _check_types(self)
        _check_ranges(self)

    def max_output_tokens(self, prompt_length: int, model_max_length: int) -> int:
        """Upper bound of output tokens for a prompt of `prompt_length` tokens in a model of that length."""
        bounds = [model_max_length - prompt_length]
        if self.max_new_tokens is not None:
            bounds.append(self.max_new_tokens)
        if self.max_length is not None:
            bounds.append(self.max_length - prompt_length)
        return min(bounds)

    def min_output_tokens(self, prompt_length: int) -> int:
        """Number of output tokens before which nothing but a length limit may end the request."""
        return max(self.min_new_tokens, self.min_length - prompt_length, 0)

    def token_ids_by_parameter(self) -> Iterable[tuple[str, Iterable[int]]]:
        """(parameter name, token ids) of every parameter that names tokens, to check against a vocabulary."""
        yield "eos_token_ids", self.eos_token_ids or ()
        yield "stop_token_ids", self.stop_token_ids
        yield "stop_words_ids", (token for word in self.stop_words_ids for token in word)
        yield "bad_words_ids", (token for word in self.bad_words_ids for token in word)
        yield "logit_bias", self.logit_bias or ()
        yield "allowed_token_ids", self.allowed_token_ids or ()


_INTS = (
    "n",
    "top_k",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "min_length",
    "top_logprobs",
)
_OPTIONAL_INTS = ("seed", "max_new_tokens", "max_length", "prompt_logprobs")
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_BOOLS = (
    "suppress_repetition_in_generation",
    "ignore_eos",
    "include_stop_in_output",
    "logprobs",
    "skip_special_tokens",
)
_ID_TUPLES = ("eos_token_ids", "stop_token_ids", "allowed_token_ids")
_WORD_TUPLES = ("stop_words_ids", "bad_words_ids")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and isfinite(value))


def _is_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_int(item) and item >= 0 for item in value)


def _require(holds: bool, params: SamplingParams, name: str, allowed: str) -> None:
    if not holds:
        raise InvalidArgument(name, getattr(params, name), allowed)


def _check_types(params: SamplingParams) -> None:
    for name in _INTS:
        _require(_is_int(getattr(params, name)), params, name, "an integer")
    for name in _OPTIONAL_INTS:
        value: Any = getattr(params, name)
        _require(value is None or _is_int(value), params, name, "an integer or None")
    for name in _FLOATS:
        _require(_is_number(getattr(params, name)), params, name, "a finite number")
    for name in _BOOLS:
        _require(isinstance(getattr(params, name), bool), params, name, "True or False")
    for name in _ID_TUPLES:
        value = getattr(params, name)
        optional = name != "stop_token_ids" and value is None
        _require(optional or _is_ids(value), params, name, "a tuple of token ids (integers from 0)")
    for name in _WORD_TUPLES:
        value = getattr(params, name)
        words = isinstance(value, tuple) and all(_is_ids(word) and word for word in value)
        _require(words, params, name, "a tuple of non-empty tuples of token ids")
    strings = isinstance(params.stop, tuple) and all(isinstance(text, str) and text for text in params.stop)
    _require(strings, params, "stop", "a tuple of non-empty strings")
    bias = params.logit_bias
    _require(
        bias is None
        or (
            isinstance(bias, Mapping)
            and all(_is_int(token) and token >= 0 and _is_number(value) for token, value in bias.items())
        ),
        params,
        "logit_bias",
        "a mapping from token id to a number from -100 to 100",
    )


def _check_ranges(params: SamplingParams) -> None:
    p = params
    _require(1 <= p.n <= MAX_N, p, "n", f"1 to {MAX_N}")
    _require(0 <= p.temperature <= 100, p, "temperature", "0 (greedy) to 100")
    _require(p.top_k >= 0, p, "top_k", "0 (all tokens) or more")
    _require(0 <= p.top_p <= 1, p, "top_p", "0 to 1")
    _require(0 <= p.min_p <= 1, p, "min_p", "0 to 1")
    _require(0 < p.repetition_penalty <= 2, p, "repetition_penalty", "above 0 to 2")
    _require(-2 <= p.presence_penalty <= 2, p, "presence_penalty", "-2 to 2")
    _require(-2 <= p.frequency_penalty <= 2, p, "frequency_penalty", "-2 to 2")
    _require(p.no_repeat_ngram_size >= 0, p, "no_repeat_ngram_size", "0 (off) or more")
    _require(p.seed is None or 0 <= p.seed <= MAX_SEED, p, "seed", "0 to 2**63 - 1, or None")
    _require(p.max_new_tokens is None or p.max_new_tokens >= 1, p, "max_new_tokens", "1 or more, or None")
    _require(p.max_length is None or p.max_length >= 1, p, "max_length", "1 or more, or None")
    _require(p.min_new_tokens >= 0, p, "min_new_tokens", "0 or more")
    _require(p.min_length >= 0, p, "min_length", "0 or more")
    if p.max_new_tokens is not None:
        _require(p.min_new_tokens <= p.max_new_tokens, p, "min_new_tokens", "at most max_new_tokens")
    if p.max_length is not None:
        _require(p.min_length <= p.max_length, p, "min_length", "at most max_length")
    _require(0 <= p.top_logprobs <= MAX_TOP_LOGPROBS, p, "top_logprobs", f"0 to {MAX_TOP_LOGPROBS}")
    _require(p.top_logprobs == 0 or p.logprobs, p, "top_logprobs", "0 unless logprobs is True")
    _require(
        p.prompt_logprobs is None or 0 <= p.prompt_logprobs <= MAX_TOP_LOGPROBS,
        p,
        "prompt_logprobs",
        f"0 to {MAX_TOP_LOGPROBS}, or None",
    )
    _require(
        p.logit_bias is None or all(-100 <= value <= 100 for value in p.logit_bias.values()),
        p,
        "logit_bias",
        "values from -100 to 100",
    )
    _require(
        p.allowed_token_ids is None or len(p.allowed_token_ids) > 0,
        p,
        "allowed_token_ids",
        "at least one token id, or None",
    )
    banned = {word[0] for word in p.bad_words_ids if len(word) == 1}
    _require(
        p.allowed_token_ids is None or not banned.issuperset(p.allowed_token_ids),
        p,
        "allowed_token_ids",
        "a token id that bad_words_ids does not forbid",
    )
