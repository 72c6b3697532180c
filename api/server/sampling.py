"""What a request's fields ask of the engine: SamplingParams and RequestOptions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...backends.worker import Tokenizer
from ...engine import RequestOptions
from ...errors import InvalidArgument, LimitExceeded
from ...scheduler import SamplingParams
from ...scheduler.sampling_fields import SAMPLING_FIELDS
from .errors import ApiError
from .keys import Tenant
from .schemas.common import RequestFields, SamplingFields
from .service import Target

_WIRE_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("input", "prompt", "messages"),
    "prompt token id": ("input", "prompt", "messages"),
    "text": ("input", "prompt", "messages"),
    "token_ids": ("tokens",),
    "deadline": ("timeout",),
    "template_variables": ("chat_template_kwargs",),
    **{field.name: field.wire_names for field in SAMPLING_FIELDS if field.wire_names},
}
"""Engine's parameter -> the field that sets it, where their names differ; it depends on the route."""


def wire_names(fields: Collection[str]) -> Mapping[str, str]:
    """Engine's parameter -> the one of a route's `fields` that sets it, where their names differ."""
    found = {
        parameter: [name for name in names if name in fields] for parameter, names in _WIRE_NAMES.items()
    }
    return {parameter: names[0] for parameter, names in found.items() if names}


_BY_ROUTE = ("logprobs", "top_logprobs", "max_new_tokens")
"""Parameters whose fields mean different things on different routes, so that these say what is asked for."""


def sampling_params(
    fields: SamplingFields,
    defaults: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams:
    """The engine's parameters; what the request leaves out is the model's own default.

    Args:
        logprobs: alternatives to report for each token; None reports nothing.

    Raises:
        InvalidArgument: a value lies outside its range.
    """
    chosen: dict[str, Any] = dict(defaults)
    for parameter in SAMPLING_FIELDS:
        if parameter.name not in _BY_ROUTE:
            values = (getattr(fields, name, None) for name in (parameter.name, *parameter.wire_names))
            given = next((value for value in values if value is not None), None)
            if given is not None:
                chosen[parameter.name] = parameter.read(given)
    if fields.bad_words:
        words = _bad_words(fields.bad_words, tokenizer)
        chosen["bad_words_ids"] = (*chosen.get("bad_words_ids", ()), *words)
    if max_tokens is not None:
        chosen["max_new_tokens"] = max_tokens
    if logprobs is not None:
        chosen["logprobs"], chosen["top_logprobs"] = True, logprobs
    return SamplingParams(**chosen)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what the headers say."""

    tenant: Tenant
    timeout: float | None
    """The smaller of the header's and the server's own, in seconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants of the engine, beside its prompt."""

    params: SamplingParams
    options: RequestOptions


def read_request(
    body: SamplingFields,
    target: Target,
    caller: Caller,
    *,
    defaults: Mapping[str, Any],
    limit: str,
    max_tokens: int | None,
    logprobs: int | None,
) -> Wanted:
    """Read the fields that the routes of answers share.

    Args:
        defaults: of the model, for what the request leaves out.
        limit: name of the field that `max_tokens`, the longest output, is from.
        logprobs: alternatives to report for each token; None reports nothing.

    Raises:
        InvalidArgument, LimitExceeded, ApiError: a field is refused.
    """
    served = target.served
    _check_stream_options(body)
    if max_tokens is not None and max_tokens > served.max_length and limit in body.model_fields_set:
        raise LimitExceeded(
            f"{limit} is {max_tokens}; {served.name!r} takes up to {served.max_length} tokens, prompt and "
            "output together",
            limit,
        )
    params = sampling_params(body, defaults, served.tokenizer, max_tokens=max_tokens, logprobs=logprobs)
    return Wanted(params, request_options(body, caller, target.adapter))


def _check_stream_options(fields: SamplingFields) -> None:
    """Raise InvalidArgument where a request that is not streamed says how it is to be."""
    if fields.stream_options is not None and not fields.stream:
        given = fields.stream_options.model_dump(exclude_unset=True)
        raise InvalidArgument("stream_options", given, "null without stream")


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """Token ids of each word, at the beginning of a text and after a blank."""
    forms = (form for word in words for form in (word, f" {word.lstrip()}"))
    encoded = {tuple(tokenizer.encode(form, add_special_tokens=False)) for form in forms}
    return encoded - {()}


def request_options(fields: RequestFields, caller: Caller, adapter: str | None) -> RequestOptions:
    """How the engine is to treat the request.

    Salts are kept apart by tenant, so no client can name its way into another's cache.

    Raises:
        ApiError: under an API key, the priority is better than the key's.
    """
    tenant = caller.tenant
    priority = fields.priority or 0
    if tenant.name and priority < 0:
        raise ApiError(
            400, f"priority is {priority}; allowed: 0 or more", param="priority", code="invalid_value"
        )
    timeouts = [seconds for seconds in (fields.timeout, caller.timeout) if seconds is not None]
    return RequestOptions(
        priority=tenant.priority + priority,
        tenant=tenant.name,
        cache_salt=None if fields.cache_salt is None else f"{tenant.name}\0{fields.cache_salt}",
        deadline=min(timeouts, default=None),
        queue_timeout=fields.queue_timeout,
        adapter=adapter,
    )


def shortened(token_ids: list[int], keep: int | None) -> list[int]:
    """The last `keep` tokens of a prompt."""
    return token_ids if keep is None else token_ids[-keep:]


def header_timeout(text: str | None, default: float | None) -> float | None:
    """Seconds of the X-Request-Timeout header, bounded by the server's own.

    Raises:
        InvalidArgument: it is no number of seconds above 0.
    """
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise InvalidArgument("X-Request-Timeout", text, "seconds above 0")
    return seconds if default is None else min(seconds, default)
