"""BodyRoute: routes whose large bodies are parsed and checked in a thread, a piece at a time."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from .text_pool import TextPool

_LARGE_BODY = 1 << 15
"""Bytes; smaller bodies are read on the event loop, in about a millisecond at most."""
_PIECE = 1 << 16
"""Bytes of JSON that are parsed in one go: nobody else runs meanwhile."""
_SMALL = 16
"""Bytes of an item, such as a token id: lists of such items take longer in pieces than in one."""
_DEPTH = 4
"""How deep the inside of a large body is parsed in pieces: down to the parts of messages."""
_PLACE = re.compile(r" \(byte (\d+)\)$")

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route that reads large JSON bodies in the application's TextPool; others as the framework does."""

    @property
    def body_model(self) -> type[BaseModel] | None:
        """What describes the body of its requests."""
        model = None if self.body_field is None else self.body_field.field_info.annotation
        return model if isinstance(model, type) and issubclass(model, BaseModel) else None

    def get_route_handler(self) -> Handle:
        """The framework's, given a request that reads large bodies by itself."""
        handle = super().get_route_handler()
        model = self.body_model
        if model is None:
            return handle

        async def handle_large(request: Request) -> Response:
            try:
                return await handle(_Reading(request, model))
            except HTTPException as error:
                # The framework hides what was wrong with a body behind an error of its own.
                if isinstance(error.__cause__, RequestValidationError):
                    raise error.__cause__ from None
                raise

        return handle_large


class _Reading(Request):
    """A request whose large body comes checked already, as the model itself."""

    def __init__(self, request: Request, model: type[BaseModel]) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model

    async def json(self) -> Any:
        body = await self.body()
        if len(body) < _LARGE_BODY:
            return await super().json()
        texts: TextPool = self.app.state.service.texts
        return await texts.run(read_body, body, self._model)


def read_body(body: bytes, model: type[BaseModel]) -> BaseModel:
    """A body, parsed and checked, while other threads get their turns.

    Raises:
        json.JSONDecodeError: it is no JSON.
        RecursionError: its values are nested too deep.
        RequestValidationError: it is not what the model describes.
    """
    try:
        fields = _parsed(body, _DEPTH)
    except msgspec.DecodeError as error:
        place = _PLACE.search(str(error))
        raise json.JSONDecodeError(
            _PLACE.sub("", str(error)), "", int(place[1]) if place else len(body)
        ) from error
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults, body=fields) from error


def _parsed(data: bytes | msgspec.Raw, depth: int) -> Any:
    """The value of JSON; the members of large objects and lists are parsed one by one."""
    size = memoryview(data).nbytes
    if depth and size > _PIECE:
        kind = bytes(memoryview(data)[:64]).lstrip()[:1]
        if kind == b"{":
            members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            return {name: _parsed(member, depth - 1) for name, member in members.items()}
        if kind == b"[" and bytes(data).count(b",") * _SMALL < size:
            return [_parsed(item, depth - 1) for item in msgspec.json.decode(data, type=list[msgspec.Raw])]
    return msgspec.json.decode(data)
