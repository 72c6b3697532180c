"""The fields of SamplingParams as a table: kind, bounds, and the names that they have on the wire.

Whoever reads sampling fields from outside (HTTP, the command line, rows of a file, DashInfer's dicts) reads
them through this table, and SamplingParams checks itself by it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import Any

from ..errors import InvalidArgument

MAX_TOP_LOGPROBS = 20
MAX_N = 128
MAX_SEED = 2**63 - 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and isfinite(value))


def _is_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_int(item) and item >= 0 for item in value)


def _is_words(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_ids(word) and word for word in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_int(token) and token >= 0 and _is_number(bias) for token, bias in value.items()
    )


def _as_is(value: Any) -> Any:
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _words(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _tuple(value)


def _top_k(value: Any) -> Any:
    """-1 keeps all tokens, too, elsewhere."""
    return 0 if _is_int(value) and value == -1 else value


def _seed(value: Any) -> Any:
    """Seeds of 64 bits, with a sign or without, are common; their lowest 63 bits count."""
    return value & MAX_SEED if _is_int(value) and -(2**63) <= value < 2**64 else value


def _bias(value: Any) -> Any:
    """JSON's keys are strings; those that are no token ids are left for the check to judge."""
    if not isinstance(value, Mapping):
        return value
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in value.items()
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """A type that fields may have."""

    allowed: str
    """In words, for errors."""
    fits: Callable[[object], bool]
    read: Callable[[Any], Any] = _as_is
    """From the forms that JSON has for it; what is none of these forms stays as it is."""


INTEGER = Kind("an integer", _is_int)
TOP_K = Kind("an integer", _is_int, _top_k)
SEED = Kind("an integer", _is_int, _seed)
NUMBER = Kind("a finite number", _is_number)
SWITCH = Kind("True or False", lambda value: isinstance(value, bool))
TOKEN_IDS = Kind("a tuple of token ids (integers from 0)", _is_ids, _tuple)
TOKEN_RUNS = Kind("a tuple of non-empty tuples of token ids", _is_words, _words)
TEXTS = Kind("a tuple of non-empty strings", _is_texts, _texts)
BIASES = Kind("a mapping from token id to a number from -100 to 100", _is_bias, _bias)


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One field of SamplingParams.

    A number lies from `low` to `high`, both allowed; `above_low` leaves `low` itself out.
    """

    name: str
    kind: Kind
    text: str
    """What it does, for people."""
    low: float | None = None
    high: float | None = None
    above_low: bool = False
    low_means: str = ""
    """What the value `low` stands for, where it is a special one."""
    optional: bool = False
    """Whether None is allowed."""
    wire_names: tuple[str, ...] = ()
    """Other names of it, the ones of HTTP and of other libraries; the first goes before those behind it."""

    def read(self, value: Any) -> Any:
        """The value in the form that SamplingParams takes; what cannot be read stays as it is."""
        return self.kind.read(value)

    def check(self, value: object) -> None:
        """Raise InvalidArgument where SamplingParams cannot take the value."""
        if value is None and self.optional:
            return
        if not self.kind.fits(value):
            raise InvalidArgument(self.name, value, self.kind.allowed + (" or None" if self.optional else ""))
        if (self.low is not None or self.high is not None) and not self._is_within(value):
            raise InvalidArgument(self.name, value, self.bounds)

    @property
    def bounds(self) -> str:
        """The values that are allowed, in words."""
        low = f"{'above ' if self.above_low else ''}{self.low}"
        if self.low_means:
            low += f" ({self.low_means})"
        return f"{low} {'or more' if self.high is None else f'to {self.high}'}" + (
            ", or None" if self.optional else ""
        )

    def _is_within(self, value: Any) -> bool:
        if self.low is not None and (value < self.low or (self.above_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


SAMPLING_FIELDS: tuple[SamplingField, ...] = (
    SamplingField("n", INTEGER, "outputs per prompt", 1, MAX_N),
    SamplingField("temperature", NUMBER, "0 always takes the most likely token", 0, 100, low_means="greedy"),
    SamplingField("top_k", TOP_K, "keep the K most likely tokens; 0 keeps all", 0, low_means="all tokens"),
    SamplingField("top_p", NUMBER, "keep the most likely tokens that together have this probability", 0, 1),
    SamplingField(
        "min_p", NUMBER, "keep tokens at least this likely compared with the most likely one", 0, 1
    ),
    SamplingField(
        "repetition_penalty", NUMBER, "above 1 makes tokens that occurred less likely", 0, 2, above_low=True
    ),
    SamplingField("presence_penalty", NUMBER, "subtracted once from tokens that were generated", -2, 2),
    SamplingField("frequency_penalty", NUMBER, "subtracted for each time a token was generated", -2, 2),
    SamplingField(
        "suppress_repetition_in_generation", SWITCH, "apply the repetition penalty to generated tokens only"
    ),
    SamplingField(
        "no_repeat_ngram_size", INTEGER, "no run of so many tokens occurs twice; 0 is off", 0, low_means="off"
    ),
    SamplingField("seed", SEED, "makes sampling repeatable", 0, MAX_SEED, optional=True),
    SamplingField(
        "max_new_tokens",
        INTEGER,
        "longest output in tokens",
        1,
        optional=True,
        wire_names=("max_tokens", "max_output_tokens", "max_completion_tokens"),
    ),
    SamplingField("max_length", INTEGER, "longest prompt and output together", 1, optional=True),
    SamplingField("min_new_tokens", INTEGER, "shortest output in tokens", 0, wire_names=("min_tokens",)),
    SamplingField("min_length", INTEGER, "shortest prompt and output together", 0),
    SamplingField("eos_token_ids", TOKEN_IDS, "instead of the model's own", optional=True),
    SamplingField("ignore_eos", SWITCH, "go on after the end-of-sequence token"),
    SamplingField("stop_token_ids", TOKEN_IDS, "tokens that end the output"),
    SamplingField("stop_words_ids", TOKEN_RUNS, "a run of tokens that ends the output"),
    SamplingField("stop", TEXTS, "ends the output"),
    SamplingField(
        "include_stop_in_output",
        SWITCH,
        "leave the stop token or stop string in the text",
        wire_names=("include_stop_str_in_output",),
    ),
    SamplingField("bad_words_ids", TOKEN_RUNS, "a run of tokens that is never produced"),
    SamplingField("logit_bias", BIASES, "added to a token's logit, -100 to 100", optional=True),
    SamplingField("allowed_token_ids", TOKEN_IDS, "nothing else is produced", optional=True),
    SamplingField("logprobs", SWITCH, "report the log-probability of each token"),
    SamplingField("top_logprobs", INTEGER, "alternatives reported for each token", 0, MAX_TOP_LOGPROBS),
    SamplingField(
        "prompt_logprobs",
        INTEGER,
        "alternatives reported for each token of the prompt",
        0,
        MAX_TOP_LOGPROBS,
        optional=True,
    ),
    SamplingField("skip_special_tokens", SWITCH, "leave special tokens out of the text"),
)
"""In the order of SamplingParams."""

FIELDS_BY_NAME: Mapping[str, SamplingField] = {
    name: field for field in SAMPLING_FIELDS for name in (field.name, *field.wire_names)
}
"""Fields by their own names and by those of the wire."""


def read_sampling_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of SamplingParams, under its names and in its forms, from what a person or a program wrote.

    Names may be those of the wire; lists stand for tuples, one string for a tuple of it, and strings of
    digits for the token ids of a bias, as in JSON.

    Raises:
        InvalidArgument: a name is unknown, or two names of one field say different things.
    """
    fields: dict[str, Any] = {}
    for name, value in given.items():
        field = FIELDS_BY_NAME.get(name)
        if field is None:
            raise unknown_field("sampling parameter", name, FIELDS_BY_NAME)
        read = field.read(value)
        if field.name in fields and fields[field.name] != read:
            raise InvalidArgument(name, value, f"the same as {field.name}, which it is another name of")
        fields[field.name] = read
    return fields


def unknown_field(kind: str, name: str, known: Iterable[str]) -> InvalidArgument:
    """The error for a name that is none of the `known`; says which of them was meant, if one is near."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.75)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return InvalidArgument(kind, name, f"one of {', '.join(names)}{hint}")
