"""/v1/models: which models there are; /load and /unload: which there are to be."""

from typing import Any

from fastapi import APIRouter

from ....engine import ModelConfig
from ....errors import ModelNotFound
from ...models import Model
from ..schemas.common import ErrorBody
from ..schemas.models import LoadRequest, ModelList, ModelObject, Unloaded, UnloadRequest
from ..service import ModelService
from .context import ERRORS, Service

router = APIRouter()

ADMIN_ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: ERRORS[status] for status in (400, 401, 404, 409, 413, 415, 500, 503)},
    403: {"model": ErrorBody, "description": "Not the admin key."},
    507: {"model": ErrorBody, "description": "The model does not fit into memory."},
}
"""Documented errors of routes that load and unload."""


@router.get("/v1/models", tags=["OpenAI"], responses={status: ERRORS[status] for status in (401, 503)})
async def list_models(service: Service) -> ModelList:
    """All models and their adapters."""
    return ModelList(object="list", data=_objects(service))


@router.get(
    "/v1/models/{name:path}",
    tags=["OpenAI"],
    responses={status: ERRORS[status] for status in (401, 404, 503)},
)
async def get_model(name: str, service: Service) -> ModelObject:
    """One model or adapter."""
    for model in _objects(service):
        if model.id == name:
            return model
    raise ModelNotFound(f"no model named {name!r} is loaded")


@router.post("/load", tags=["Administration"], responses=ADMIN_ERRORS)
async def load_model(body: LoadRequest, service: Service) -> ModelObject:
    """Load a model; answers when it takes requests."""
    fields = body.model_dump(exclude_none=True)
    model = await service.load(ModelConfig(**{**service.defaults, **fields}))
    return _model_object(model)


@router.post("/unload", tags=["Administration"], responses=ADMIN_ERRORS)
async def unload_model(body: UnloadRequest, service: Service) -> Unloaded:
    """Unload a model; answers when its memory is free."""
    await service.unload(body.model, timeout=body.timeout)
    return Unloaded(id=body.model, object="model", deleted=True)


def _objects(service: ModelService) -> list[ModelObject]:
    found: list[ModelObject] = []
    for model in service.models():
        found.append(_model_object(model))
        found.extend(_model_object(model, adapter) for adapter in service.adapters(model))
    return found


def _model_object(model: Model, adapter: str | None = None) -> ModelObject:
    return ModelObject(
        id=adapter or model.name,
        object="model",
        created=model.created,
        owned_by="millstream",
        root=model.config.adapters.get(adapter, "") if adapter else model.config.model,
        parent=model.name if adapter else None,
        max_model_len=model.max_length,
    )
