"""/health, /ready and /version: what a supervisor asks; open to everybody."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from ....engine import AsyncEngine, ModelState
from ....version import __version__
from ..draining import Drain, Phase
from .context import Config, Service

router = APIRouter(tags=["Health"])


class Health(BaseModel):
    """Whether the process is of use, or is to be started again."""

    status: Literal["ok", "failing"]
    reason: str | None = None


class Readiness(BaseModel):
    """Whether requests may be sent here."""

    status: Literal["ready", "not ready"]
    reason: str | None = None


class Version(BaseModel):
    """Which release this is."""

    version: str


def drain_of(request: Request) -> Drain:
    """The application's phase."""
    drain: Drain = request.app.state.drain
    return drain


DrainState = Annotated[Drain, Depends(drain_of)]


@router.get("/health", response_model_exclude_none=True, responses={503: {"model": Health}})
async def health(response: Response, service: Service, config: Config) -> Health:
    """200 unless a model has work and makes no progress, or its step loop has ended by itself.

    It stays 200 while models are loaded and while the server shuts down: starting anew would help neither.
    """
    reason = failure(service.engine, config.stall_seconds)
    if reason is None:
        return Health(status="ok")
    response.status_code = 503
    return Health(status="failing", reason=reason)


@router.get("/ready", response_model_exclude_none=True, responses={503: {"model": Readiness}})
async def ready(response: Response, service: Service, config: Config, drain: DrainState) -> Readiness:
    """200 while a model runs and all is well; 503 before that, and from the beginning of the shutdown."""
    reason = None if drain.phase is Phase.SERVING else f"the server is {drain.phase.value}"
    reason = reason or failure(service.engine, config.stall_seconds)
    if reason is None and not any(
        service.engine.model_state(model.name) is ModelState.RUNNING for model in service.models()
    ):
        reason = "no model runs"
    if reason is None:
        return Readiness(status="ready")
    response.status_code = 503
    return Readiness(status="not ready", reason=reason)


@router.get("/version")
async def version() -> Version:
    """The release."""
    return Version(version=__version__)


def failure(engine: AsyncEngine, stall_seconds: float) -> str | None:
    """Why the engine is of no use any more; None while it is."""
    for name in engine.models():
        stats = engine.stats(name)
        if stats.failure is not None:
            return f"the step loop of model {name!r} has ended; the log says why"
        if stats.stalled_seconds > stall_seconds:
            return f"model {name!r} has work, and no step has ended for {stats.stalled_seconds:.0f} s"
    return None
