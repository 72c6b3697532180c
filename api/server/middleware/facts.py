"""RequestFacts: what is known of a request at its end, for the log and for traces."""

import msgspec
from starlette.types import Scope

from ....engine import RequestTimes
from ..generation import Generation
from .scope import request_state


class RequestFacts(msgspec.Struct, frozen=True):
    """Read from a request's state: its `generation`, else its `model` and `prompt_tokens`."""

    model: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    times: tuple[RequestTimes, ...] = ()
    """One per choice."""


def request_facts(scope: Scope) -> RequestFacts:
    """What the request's route has left in its state."""
    state = request_state(scope)
    generation = state.get("generation")
    if not isinstance(generation, Generation):
        return RequestFacts(state.get("model"), state.get("prompt_tokens"))
    usage = generation.usage()
    streams = generation.streams
    return RequestFacts(
        generation.target.name,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens_details.cached_tokens,
        tuple(stream.finish_reason.value for stream in streams if stream.finish_reason is not None),
        tuple(stream.times for stream in streams),
    )
