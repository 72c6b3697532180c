"""The application: routes, what every request passes on its way to them, and how errors are told."""

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ...errors import MillstreamError
from .config import ServerConfig
from .draining import Drain
from .errors import ApiError, api_error
from .field_errors import field_error, unreadable
from .keys import KeyRing
from .metrics import ServerMetrics
from .middleware.access_log import AccessLog
from .middleware.authentication import Authentication
from .middleware.body_limit import BodyLimit
from .middleware.cors import Cors
from .middleware.drain_gate import DrainGate
from .middleware.host_guard import HostGuard
from .middleware.http_metrics import HttpMetrics
from .middleware.internal_errors import InternalErrors
from .middleware.key_limits import KeyLimits
from .middleware.prompt_log import PromptLog
from .middleware.request_ids import RequestIds
from .middleware.unknown_fields import UnknownFields
from .openapi import describe_server
from .responses.keeper import ResponseKeeper
from .routes import (
    chat,
    completions,
    embeddings,
    health,
    metrics,
    models,
    old,
    page,
    reserved,
    responses,
    tokens,
)
from .sampling import wire_names
from .service import ModelService
from .tracing import RequestSpans, Tracing

_ROUTERS: tuple[APIRouter, ...] = (
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    models.router,
    tokens.router,
    health.router,
    metrics.router,
    old.router,
    page.router,
    reserved.router,
)


def create_app(
    service: ModelService, config: ServerConfig, metrics: ServerMetrics, tracing: Tracing | None = None
) -> FastAPI:
    """The ASGI application over a service's models. With `tracing`, every request gets a span.

    Raises:
        InvalidArgument: two API keys share a name or are the same.
    """
    from ...version import __version__

    app = FastAPI(
        title="Millstream",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    describe_server(app, config)
    app.state.service = service
    app.state.config = config
    app.state.metrics = metrics
    app.state.drain = Drain()
    app.state.responses = ResponseKeeper(config)
    app.state.current_model = old.CurrentModel()
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, _respond_error)
    app.add_exception_handler(MillstreamError, _respond_error)
    app.add_exception_handler(RequestValidationError, _respond_error)
    app.add_exception_handler(HTTPException, _respond_error)
    _add_middleware(app, config, metrics, tracing)
    # Else it is built with the first message, too late to refuse a configuration.
    app.middleware_stack = app.build_middleware_stack()
    return app


def _add_middleware(
    app: FastAPI, config: ServerConfig, metrics: ServerMetrics, tracing: Tracing | None
) -> None:
    """What every request passes; the one added last is passed first."""
    if not config.refuse_unknown_fields:
        app.add_middleware(UnknownFields, fields=_body_fields())
    if config.log_prompts:
        app.add_middleware(PromptLog)
    app.add_middleware(KeyLimits, api_keys=config.api_keys)
    app.add_middleware(
        Authentication,
        keys=KeyRing(config.api_keys, config.admin_key),
        protect_metrics=config.protect_metrics,
    )
    app.add_middleware(InternalErrors)
    app.add_middleware(BodyLimit, max_body_bytes=config.max_body_bytes)
    app.add_middleware(DrainGate, drain=app.state.drain)
    if config.cors_origins:
        app.add_middleware(Cors, origins=config.cors_origins)
    if config.allowed_hosts or not config.api_keys:
        app.add_middleware(
            HostGuard,
            host=config.host,
            allowed_hosts=config.allowed_hosts,
            origins=config.cors_origins,
            open_to_all=not config.api_keys,
        )
    if tracing is not None:
        app.add_middleware(RequestSpans, tracing=tracing)
    app.add_middleware(AccessLog)
    app.add_middleware(HttpMetrics, metrics=metrics)
    app.add_middleware(RequestIds)


def _body_fields() -> Mapping[str, frozenset[str]]:
    """Path -> names of the fields of its body."""
    found: dict[str, frozenset[str]] = {}
    for route in (route for router in _ROUTERS for route in router.routes):
        model = _body_of(route)
        if isinstance(route, APIRoute) and model is not None:
            found[route.path] = frozenset(model.model_fields)
    return found


async def _respond_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        # The framework names the methods of the first route alone.
        error.headers = {**(error.headers or {}), "Allow": ", ".join(_methods_at(request.scope["path"]))}
    told = to_api_error(error, _body_of(request.scope.get("route")))
    request.scope.setdefault("state", {})["error_code"] = told.code
    return told.response()


def _methods_at(path: str) -> list[str]:
    routes = (route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute))
    found = (route.methods or () for route in routes if route.path_regex.match(path))
    return sorted({method for methods in found for method in methods})


def _body_of(route: object) -> type[BaseModel] | None:
    """What describes the body of a route's requests."""
    field = route.body_field if isinstance(route, APIRoute) else None
    model = None if field is None else field.field_info.annotation
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def to_api_error(error: Exception, body: type[BaseModel] | None = None) -> ApiError:
    """What a client is told of anything that was raised; `body` describes the body of its request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MillstreamError):
        return api_error(error, wire_names(body.model_fields if body is not None else ()))
    if isinstance(error, RequestValidationError):
        return field_error(error, body)
    if isinstance(error, HTTPException):
        return _http_error(error)
    raise error


def _http_error(error: HTTPException) -> ApiError:
    """The framework's own refusals: of paths, methods, and bodies that could not be read."""
    headers = dict(error.headers or {})
    if error.status_code == 400:
        return unreadable(error.__cause__)
    if error.status_code == 405:
        message = f"the method is not allowed here; allowed: {headers.get('Allow', 'none')}"
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    if error.status_code == 404:
        return ApiError(404, "there is nothing at this path", code="not_found", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=headers)
