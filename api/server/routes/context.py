"""What routes take from a request besides its body, and what they say about their errors."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from fastapi import Depends, Request, Response
from pydantic import BaseModel

from ....errors import InvalidArgument
from ...models import Model
from ..config import ServerConfig
from ..generation import Generation
from ..keys import Tenant
from ..sampling import Caller, header_timeout
from ..schemas.chunks import UsageSoFar, usage_chunk
from ..schemas.common import ErrorBody, StreamOptions
from ..service import ModelService, Target
from ..sse import EventStream, Hangup

Result = TypeVar("Result")

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Something in the request is wrong; `param` names it."},
    401: {"model": ErrorBody, "description": "No valid API key."},
    404: {"model": ErrorBody, "description": "There is no such model."},
    409: {"model": ErrorBody, "description": "The model is not in a state for this."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    415: {"model": ErrorBody, "description": "The body's Content-Type is not JSON."},
    429: {"model": ErrorBody, "description": "Too much is queued; Retry-After says when to try again."},
    500: {"model": ErrorBody, "description": "The request failed; it is not the client's fault."},
    503: {"model": ErrorBody, "description": "The server, or the model, is stopping."},
    504: {"model": ErrorBody, "description": "The request's time was up before its first token."},
}
"""Documented errors of the routes that generate."""


async def service_of(request: Request) -> ModelService:
    """The application's models."""
    service: ModelService = request.app.state.service
    return service


async def config_of(request: Request) -> ServerConfig:
    """The application's configuration."""
    config: ServerConfig = request.app.state.config
    return config


async def caller_of(request: Request) -> Caller:
    """Who asks, from what the middleware found out and the headers.

    Raises:
        InvalidArgument: a header's value is not allowed.
    """
    state = request.scope.get("state", {})
    config = await config_of(request)
    timeout = header_timeout(request.headers.get("x-request-timeout"), config.request_timeout)
    return Caller(state.get("tenant", Tenant()), timeout)


# As coroutines: FastAPI calls plain functions in a thread, which takes longer than all of the routing.
Service = Annotated[ModelService, Depends(service_of)]
Config = Annotated[ServerConfig, Depends(config_of)]
AskedBy = Annotated[Caller, Depends(caller_of)]


def target_of(request: Request, service: ModelService, name: str | None) -> Target:
    """The model that a body names; noted for the access log.

    Raises:
        ModelNotFound
    """
    target = service.target(name)
    request.scope.setdefault("state", {})["model"] = target.name
    return target


def note_generation(request: Request, generation: Generation) -> None:
    """Let the access log and the traces see what the request has started."""
    request.scope.setdefault("state", {})["generation"] = generation


def check_template(template: str | None, model: Model, config: ServerConfig) -> None:
    """Raise InvalidArgument for Jinja source from a client, unless the server trusts its clients.

    The sandbox keeps a template from doing harm, but not from looping for ever on the event loop.
    """
    if template is None or config.trust_request_templates:
        return
    names = model.tokenizer.chat_template_names
    if template not in names:
        known = f"a name of the model's templates ({', '.join(names) or 'it has none'})"
        allowed = f"{known}; Jinja source where the server was started with --trust-request-templates"
        raise InvalidArgument("chat_template", template, allowed)


async def unless_gone(request: Request, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """What `work` gives; cancelled, and None, when the client hangs up first."""
    async with Hangup(request.receive):
        return await work()
    return None


class Answer(Protocol):
    """What a route has started, to be told whole or as events."""

    @property
    def generation(self) -> Generation:
        """The work behind it."""

    async def completion(self) -> BaseModel:
        """The whole answer. Raises ApiError where it failed."""

    def stream(self) -> AsyncIterator[bytes]:
        """The answer's events."""


async def respond(request: Request, config: ServerConfig, answer: Answer, *, stream: bool) -> Response:
    """The response that carries an answer; the work ends when the client leaves before it does."""
    note_generation(request, answer.generation)
    if stream:
        return EventStream(answer.generation, answer.stream(), keep_alive=config.keep_alive_seconds)
    with answer.generation:
        completion = await unless_gone(request, answer.completion)
    if completion is None:
        return Response(status_code=499)
    return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")


def responses_of(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Documentation of a route that answers so, or as server-sent events."""
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"model": model, "content": events}, **ERRORS}


def continuous_usage(options: StreamOptions | None) -> bool:
    """Whether every event of the stream is to count the tokens so far."""
    return options is not None and bool(options.continuous_usage_stats)


def usage_in_chunk(
    generation: Generation, options: StreamOptions | None, *, at_end: bool = False
) -> UsageSoFar | msgspec.UnsetType | None:
    """The `usage` of an event: the tokens so far where it is to count them, else null, or left out."""
    if options is None or not (options.include_usage or options.continuous_usage_stats):
        return msgspec.UNSET
    return usage_chunk(generation.usage()) if at_end or options.continuous_usage_stats else None
