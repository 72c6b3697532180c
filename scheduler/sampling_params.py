"""SamplingParams: what one request asks of generation, validated when it is made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import msgspec

from ..errors import InvalidArgument
from .named_fields import NamedFields
from .sampling_fields import FIELDS_BY_NAME, SAMPLING_FIELDS


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, metaclass=NamedFields):
    """Generation parameters of one request.

    Names follow vLLM and transformers; DashInfer's names are translated at its face. Greedy decoding is
    `temperature=0` (or `top_k=1`). Lengths are in tokens; `max_length` and `min_length` count prompt and
    output together, `max_new_tokens` and `min_new_tokens` the output alone; where both maxima are given
    the smaller bound holds. With neither, the model's `default_max_new_tokens` does. `max_tokens` is another
    name of `max_new_tokens`.

    Raises:
        InvalidArgument: a field does not exist, or a value has the wrong type or lies outside its range.
    """

    _other_names: ClassVar[Mapping[str, str]] = {"max_tokens": "max_new_tokens"}

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
    stop: Sequence[str] = ()
    """Strings that end the request when the output text contains one of them; one string, a list or a tuple,
    kept as a tuple."""
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
        if not isinstance(self.stop, tuple):
            msgspec.structs.force_setattr(self, "stop", FIELDS_BY_NAME["stop"].read(self.stop))
        for field in SAMPLING_FIELDS:
            field.check(getattr(self, field.name))
        _check_together(self)

    def max_output_tokens(self, prompt_length: int, model_max_length: int, default: int | None = None) -> int:
        """Upper bound of output tokens for a prompt of `prompt_length` tokens in a model of that length.

        `default` bounds the output where these parameters say nothing.
        """
        bounds = [model_max_length - prompt_length]
        if self.max_new_tokens is not None:
            bounds.append(self.max_new_tokens)
        if self.max_length is not None:
            bounds.append(self.max_length - prompt_length)
        if len(bounds) == 1 and default is not None:
            bounds.append(default)
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


def _require(holds: bool, params: SamplingParams, name: str, allowed: str) -> None:
    if not holds:
        raise InvalidArgument(name, getattr(params, name), allowed)


def _check_together(p: SamplingParams) -> None:
    """What no field says alone."""
    if p.max_new_tokens is not None:
        _require(p.min_new_tokens <= p.max_new_tokens, p, "min_new_tokens", "at most max_new_tokens")
    if p.max_length is not None:
        _require(p.min_length <= p.max_length, p, "min_length", "at most max_length")
    _require(p.top_logprobs == 0 or p.logprobs, p, "top_logprobs", "0 unless logprobs is True")
    _require(
        p.logit_bias is None or all(-100 <= value <= 100 for value in p.logit_bias.values()),
        p,
        "logit_bias",
        "values from -100 to 100",
    )
    if p.allowed_token_ids is not None:
        _require(len(p.allowed_token_ids) > 0, p, "allowed_token_ids", "at least one token id, or None")
        banned = {word[0] for word in p.bad_words_ids if len(word) == 1}
        _require(
            not banned.issuperset(p.allowed_token_ids),
            p,
            "allowed_token_ids",
            "a token id that bad_words_ids does not forbid",
        )
