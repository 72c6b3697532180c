"""/v1/responses: answers to conversations that the server keeps."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from ....errors import InvalidArgument
from ..bodies import BodyRoute
from ..errors import ApiError
from ..responses.conversation import Conversation, read_input
from ..responses.keeper import ResponseKeeper, page
from ..responses.run import ResponseRun, start_response
from ..sampling import Caller
from ..schemas import responses as wire
from ..schemas.common import Wire
from ..schemas.response_items import Item, ItemList
from ..sse import EventStream
from .context import (
    ERRORS,
    AskedBy,
    Config,
    Service,
    check_template,
    note_generation,
    target_of,
    unless_gone,
)

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


def keeper_of(request: Request) -> ResponseKeeper:
    """The application's responses."""
    keeper: ResponseKeeper = request.app.state.responses
    return keeper


Keeper = Annotated[ResponseKeeper, Depends(keeper_of)]


_FOUND: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (400, 401, 404)}


def _documented(model: type[Wire]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **_FOUND}


@router.post(
    "/v1/responses",
    response_class=Response,
    responses={
        200: {"model": wire.Response, "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        **ERRORS,
    },
)
async def create_response(
    body: wire.ResponseRequest,
    request: Request,
    service: Service,
    config: Config,
    caller: AskedBy,
    keeper: Keeper,
) -> Response:
    """Answer a conversation: whole, as server-sent events, or in the background.

    A response whose client leaves before its end is stopped and not kept, unless it is in the background.
    """
    target = target_of(request, service, body.model)
    check_template(body.chat_template, target.served, config)
    store = body.store is not False and keeper.store.keeps
    if body.background:
        _require_background(body, keeper, caller, stored=store)
    previous = None
    if body.previous_response_id is not None:
        previous = keeper.previous(caller.tenant.name, body.previous_response_id)
    conversation = Conversation(
        body.instructions,
        () if previous is None else previous.conversation(),
        read_input(body.input, lambda item_id: keeper.store.find_item(caller.tenant.name, item_id)),
    )
    if not conversation.all_items:
        raise ApiError(400, "input is missing", param="input", code="missing_field")
    run = await start_response(body, conversation, previous, service, target, caller, store=store)
    note_generation(request, run.generation)
    if body.background:
        return _json(await keeper.background.start(run))

    def keep(response: wire.Response) -> None:
        if store:
            keeper.store.keep(run.kept(response))

    if body.stream:
        return EventStream(run.generation, run.events(keep), keep_alive=config.keep_alive_seconds)
    with run.generation:
        response = await unless_gone(request, run.whole)
    if response is None:
        return Response(status_code=499)
    keep(response)
    return _json(response)


def _require_background(
    body: wire.ResponseRequest, keeper: ResponseKeeper, caller: Caller, *, stored: bool
) -> None:
    """Raise where a response cannot be made in the background."""
    if body.stream:
        raise InvalidArgument("stream", True, "false with background; ask for the response by its id")
    if body.store is False:
        raise InvalidArgument("store", False, "true with background")
    if not stored:
        raise InvalidArgument("background", True, "false: this server keeps no responses")
    keeper.background.require_room(caller.tenant.name)


@router.get("/v1/responses/{response_id}", response_class=Response, responses=_documented(wire.Response))
async def retrieve_response(
    response_id: str, caller: AskedBy, keeper: Keeper, stream: bool = False
) -> Response:
    """A response, at its end or as far as it is."""
    found = keeper.find(caller.tenant.name, response_id)
    if stream:
        raise InvalidArgument("stream", True, "false: events are not kept")
    if isinstance(found, ResponseRun):
        return _json(found.so_far())
    return Response(found.response, media_type="application/json")


@router.delete(
    "/v1/responses/{response_id}", response_class=Response, responses=_documented(wire.DeletedResponse)
)
async def delete_response(response_id: str, caller: AskedBy, keeper: Keeper) -> Response:
    """Keep a response no longer; one that has not ended is stopped. Those that go on from it stay."""
    tenant = caller.tenant.name
    keeper.find(tenant, response_id)
    await keeper.background.cancel(tenant, response_id)
    keeper.store.forget(tenant, response_id)
    return _json(wire.DeletedResponse(id=response_id, object="response", deleted=True))


@router.post(
    "/v1/responses/{response_id}/cancel", response_class=Response, responses=_documented(wire.Response)
)
async def cancel_response(response_id: str, caller: AskedBy, keeper: Keeper) -> Response:
    """End a response in the background at the next step; one that has ended stays as it is."""
    tenant = caller.tenant.name
    await keeper.background.cancel(tenant, response_id)
    found = keeper.find(tenant, response_id)
    if isinstance(found, ResponseRun):
        return _json(found.so_far())
    if not found.background:
        raise ApiError(
            400,
            "Cannot cancel a synchronous response: it was not made in the background.",
            param="response_id",
            code="not_in_background",
        )
    return Response(found.response, media_type="application/json")


@router.get(
    "/v1/responses/{response_id}/input_items", response_class=Response, responses=_documented(ItemList)
)
async def list_input_items(
    response_id: str,
    caller: AskedBy,
    keeper: Keeper,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """What a response was made from, earlier turns included; the newest first unless `order` is "asc"."""
    found = keeper.find(caller.tenant.name, response_id)
    if isinstance(found, ResponseRun):
        items: Sequence[Item] = found.conversation.all_items
    else:
        items = found.input_items()
    data, has_more = page(items, limit=limit, after=after, newest_first=order == "desc")
    return _json(
        ItemList(
            object="list",
            data=list(data),
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=has_more,
        )
    )


def _json(model: Wire) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
