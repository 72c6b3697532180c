"""/old: one current model, initialised and then talked to; kept for programs that still speak this way."""

import msgspec
from fastapi import APIRouter, Request, Response

from ....engine import ModelConfig, Output
from ..bodies import BodyRoute
from ..errors import ApiError
from ..generation import finish_name
from ..keys import ADMIN_NAME
from ..sampling import Caller
from ..schemas.chat import ChatRequest
from ..schemas.old import InitializeRequest, OldAnswer, OldGenerateRequest, OldStatus
from ..service import ModelService
from ..sse import EventStream, event
from .chat import ChatAnswer, start_chat
from .context import ERRORS, AskedBy, Config, Service, note_generation, target_of, unless_gone
from .models import ADMIN_ERRORS

router = APIRouter(route_class=BodyRoute, prefix="/old", tags=["Old"])


class CurrentModel:
    """Which model the /old routes talk to: the one that was initialised last, else the server's default."""

    def __init__(self) -> None:
        self.name: str | None = None


class OldDelta(msgspec.Struct, frozen=True):
    """One event of /old/stream; the last one has the finish reason."""

    token: str
    finish_reason: str | None = None


class OldStream(ChatAnswer):
    """A chat's answer, streamed as /old/stream does it."""

    def delta(self, index: int, output: Output, *, first: bool) -> bytes:
        """An event of the content; none without any, but the last."""
        content = self.parsed(index, output).content
        reason = output.finish_reason
        if not content and reason is None:
            return b""
        return event(OldDelta(content, None if reason is None else finish_name(reason)))

    def final(self, error: ApiError | None) -> bytes:
        """What has gone wrong."""
        return b"" if error is None else b"data: " + error.body() + b"\n\n"


@router.post("/initialize", name="old_initialize", responses=ADMIN_ERRORS)
async def initialize(
    body: InitializeRequest, request: Request, service: Service, caller: AskedBy
) -> OldStatus:
    """Make a model the current one; one that is not loaded yet is loaded, which needs the admin key."""
    name = body.name or body.model
    if name not in [model.name for model in service.models()]:
        if caller.tenant.name != ADMIN_NAME:
            raise ApiError(
                403,
                f"model {name!r} is not loaded, and loading it needs the admin key",
                kind="permission_error",
                code="admin_key_needed",
            )
        await service.load(ModelConfig(**{**service.defaults, **body.model_dump(exclude_none=True)}))
    _current(request).name = name
    return _status(request, service)


@router.get("/status", name="old_status", responses={status: ERRORS[status] for status in (401, 503)})
async def status(request: Request, service: Service) -> OldStatus:
    """The current model."""
    return _status(request, service)


@router.post(
    "/generate", name="old_generate", response_class=Response, responses={200: {"model": OldAnswer}, **ERRORS}
)
async def generate(body: OldGenerateRequest, request: Request, service: Service, caller: AskedBy) -> Response:
    """The current model's whole answer to a conversation."""
    answer = await _start(body, request, service, caller)
    with answer.generation:
        completion = await unless_gone(request, answer.completion)
    if completion is None:
        return Response(status_code=499)
    choice = completion.choices[0]
    told = OldAnswer(
        response=choice.message.content or "", model=completion.model, finish_reason=choice.finish_reason
    )
    return Response(told.model_dump_json(), media_type="application/json")


@router.post(
    "/stream",
    name="old_stream",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **ERRORS},
)
async def stream(
    body: OldGenerateRequest, request: Request, service: Service, config: Config, caller: AskedBy
) -> Response:
    """The current model's answer as server-sent events, a token (or what is ready) at a time."""
    answer = await _start(body, request, service, caller)
    return EventStream(answer.generation, answer.stream(), keep_alive=config.keep_alive_seconds)


async def _start(
    body: OldGenerateRequest, request: Request, service: ModelService, caller: Caller
) -> OldStream:
    target = target_of(request, service, _status(request, service).model)
    asked = ChatRequest.model_validate({**body.model_dump(exclude_none=True), "include_reasoning": False})
    answer = await start_chat(asked, service, target, caller, OldStream)
    note_generation(request, answer.generation)
    return answer


def _current(request: Request) -> CurrentModel:
    current: CurrentModel = request.app.state.current_model
    return current


def _status(request: Request, service: ModelService) -> OldStatus:
    names = [model.name for model in service.models()]
    current = _current(request).name
    if current not in names:
        current = names[0] if names else None
    return OldStatus(status="ready" if current else "no model", model=current, models=names)
