"""DashInfer's generation configuration, a plain dict, translated into SamplingParams.

| key | meaning here |
|---|---|
| max_length | prompt and output together; 20 where neither it nor max_new_tokens is given, as in DashInfer |
| min_length, no_repeat_ngram_size, seed | as in SamplingParams |
| repetition_penalty, presence_penalty, frequency_penalty | as in SamplingParams |
| suppress_repetition_in_generation | as in SamplingParams |
| stop_words_ids, bad_words_ids, logprobs | as in SamplingParams |
| top_k | 50 where it is not given, as in DashInfer |
| top_p | as it stands: 1.0 keeps every token (DashInfer silently makes 0.99 of it) |
| temperature | below 0.00001 means greedy |
| do_sample | False means greedy, as in transformers, whatever the temperature |
| num_return_sequences | SamplingParams.n |
| eos_token_id | an id or a list of ids; the model's own where it is not given (DashInfer takes 102) |
| early_stopping | False means ignore_eos: end-of-sequence tokens do not end the request, stop words do |
| top_logprobs | up to 20; counts only where logprobs is True |
| lora_name | RequestOptions.adapter; "" asks for none |
| uuid | a name for the log |

These ask for nothing with the values named and are refused with others: num_beams 1; response_format None,
{} or {"type": "text"}; mm_info None; enable_tensors_from_model_inference False. Two kinds of key have no
effect in DashInfer either, and none here: length_penalty without beams, vocab and vocab_type without
response_format.

The other fields of SamplingParams and RequestOptions are taken under their own names. None means "not given".
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..engine import RequestOptions, SamplingParams
from ..errors import InvalidArgument, NotSupported
from ..scheduler.sampling_fields import SAMPLING_FIELDS, SEED, TOP_K, unknown_field

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 20
DEFAULT_TOP_K = 50
GREEDY_TEMPERATURE = 1e-5
"""Temperatures below it mean greedy decoding."""

DASHINFER_KEYS = (
    "num_beams",
    "num_return_sequences",
    "temperature",
    "do_sample",
    "early_stopping",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "length_penalty",
    "suppress_repetition_in_generation",
    "min_length",
    "max_length",
    "no_repeat_ngram_size",
    "eos_token_id",
    "uuid",
    "stop_words_ids",
    "lora_name",
    "bad_words_ids",
    "top_k",
    "top_p",
    "seed",
    "logprobs",
    "top_logprobs",
    "mm_info",
    "response_format",
    "vocab",
    "vocab_type",
    "enable_tensors_from_model_inference",
)
PARAMS_KEYS = tuple(field.name for field in SAMPLING_FIELDS)
OPTION_KEYS = RequestOptions.__struct_fields__
KNOWN_KEYS = frozenset(DASHINFER_KEYS) | frozenset(PARAMS_KEYS) | frozenset(OPTION_KEYS)

_UNSUPPORTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_beams": (
        lambda value: value == 1,
        "beam search is not supported; allowed: 1",
    ),
    "response_format": (
        lambda value: value in ({}, {"type": "text"}),
        'guided decoding is not supported; allowed: {"type": "text"}, or nothing',
    ),
    "mm_info": (lambda value: False, "multimedia input is not supported; allowed: None"),
    "enable_tensors_from_model_inference": (
        lambda value: value is False,
        "tensors of the model are not handed out; allowed: False",
    ),
}


class Translation(msgspec.Struct, frozen=True):
    """What a generation configuration asks for."""

    params: SamplingParams
    options: RequestOptions
    uuid: str
    """The caller's name of the request, for the log; empty without one."""


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise InvalidArgument when a key is unknown."""
    for key in config:
        if key not in KNOWN_KEYS:
            raise unknown_field("generation configuration key", key, sorted(KNOWN_KEYS))


def translate(config: Mapping[str, Any]) -> Translation:
    """Raises InvalidArgument for unknown keys and wrong values, NotSupported for what does not exist here."""
    if not isinstance(config, Mapping):
        raise InvalidArgument("generation configuration", config, "a dict, or an ASGenerationConfigBuilder")
    check_keys(config)
    given = {key: value for key, value in config.items() if value is not None}
    for key, (asks_nothing, reason) in _UNSUPPORTED.items():
        if key in given and not asks_nothing(given[key]):
            raise NotSupported(f"{key} is {given[key]!r}: {reason}")
    uuid = given.get("uuid", "")
    if not isinstance(uuid, str):
        raise InvalidArgument("uuid", uuid, "a string")
    options = {key: given[key] for key in OPTION_KEYS if key in given}
    if given.get("lora_name", "") != "":
        _set_once(options, "adapter", given["lora_name"], "lora_name")
    return Translation(_params(given), RequestOptions(**options), uuid)


def _params(given: Mapping[str, Any]) -> SamplingParams:
    # A top_k of -1 and seeds with a sign are other dialects'.
    fields = {
        field.name: given[field.name] if field.kind in (TOP_K, SEED) else field.read(given[field.name])
        for field in SAMPLING_FIELDS
        if field.name in given
    }
    if "eos_token_id" in given:
        eos = given["eos_token_id"]
        _set_once(
            fields, "eos_token_ids", tuple(eos) if isinstance(eos, list | tuple) else (eos,), "eos_token_id"
        )
    if "num_return_sequences" in given:
        _set_once(fields, "n", given["num_return_sequences"], "num_return_sequences")
    if not _flag(given, "early_stopping", True):
        _set_once(fields, "ignore_eos", True, "early_stopping")
    if fields.get("logprobs") is False:
        fields.pop("top_logprobs", None)
    if "max_length" not in fields and "max_new_tokens" not in fields:
        fields["max_length"] = DEFAULT_MAX_LENGTH
    fields.setdefault("top_k", DEFAULT_TOP_K)
    params = SamplingParams(**fields)
    if _flag(given, "do_sample", True) and params.temperature >= GREEDY_TEMPERATURE:
        return params
    _warn_of_idle(given)
    return msgspec.structs.replace(params, temperature=0.0)


def _warn_of_idle(given: Mapping[str, Any]) -> None:
    neutral = {"temperature": (0.0, 1.0), "top_k": (0, 1, DEFAULT_TOP_K), "top_p": (1.0,), "min_p": (0.0,)}
    idle = [key for key, values in neutral.items() if key in given and given[key] not in values]
    if idle and given.get("do_sample") is False:
        logger.warning("do_sample is False, so decoding is greedy and %s do not matter", ", ".join(idle))


def _flag(given: Mapping[str, Any], key: str, default: bool) -> bool:
    value = given.get(key, default)
    if not isinstance(value, bool):
        raise InvalidArgument(key, value, "True or False")
    return value


def _set_once(fields: dict[str, Any], name: str, value: Any, key: str) -> None:
    """Set `fields[name]`, which `key` is another name of."""
    if name in fields and fields[name] != value:
        raise InvalidArgument(key, value, f"nothing else than {name}, which is {fields[name]!r}")
    fields[name] = value
