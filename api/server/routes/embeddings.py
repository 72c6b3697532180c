"""/v1/embeddings: vectors of texts."""

from base64 import b64encode
from collections.abc import Sequence
from struct import pack
from typing import Any

from fastapi import APIRouter, Request, Response

from ....engine import PoolingParams
from ...models import Model
from ..bodies import BodyRoute
from ..generation import Generation
from ..sampling import request_options
from ..schemas.embeddings import EmbeddingList, EmbeddingObject, EmbeddingRequest, EmbeddingUsage
from ..text_pool import encode
from .context import ERRORS, AskedBy, Service, note_generation, target_of, unless_gone

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


@router.post("/v1/embeddings", response_class=Response, responses={200: {"model": EmbeddingList}, **ERRORS})
async def create_embeddings(
    body: EmbeddingRequest, request: Request, service: Service, caller: AskedBy
) -> Response:
    """Embed a text, or each of several."""
    target = target_of(request, service, body.model)
    params = PoolingParams(normalize=body.normalize, dimensions=body.dimensions)
    prompts = await service.texts.run_long(_size(body), _prompts, body, target.served)
    options = request_options(body, caller, target.adapter)
    generation = await Generation.start(service, target, prompts, params, options)
    note_generation(request, generation)
    with generation:
        vectors = await unless_gone(request, generation.embeddings)
    if vectors is None:
        return Response(status_code=499)
    tokens = sum(map(len, prompts))
    answer = EmbeddingList(
        object="list",
        data=[
            EmbeddingObject(object="embedding", index=index, embedding=_encoded(vector, body.encoding_format))
            for index, vector in enumerate(vectors)
        ],
        model=target.name,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _size(body: EmbeddingRequest) -> int:
    """How many characters there are to be made tokens of."""
    given = body.input if isinstance(body.input, list) else [body.input]
    return sum(map(len, given)) if isinstance(given[0], str) else 0


def _prompts(body: EmbeddingRequest, served: Model) -> list[list[int]]:
    """Token ids of all texts. Raises InvalidArgument, LimitExceeded."""
    given: Sequence[Any] = body.input if isinstance(body.input, list) else [body.input]
    if isinstance(given[0], int):
        given = [given]
    most = served.max_length if body.truncate_prompt_tokens is None else None
    token_ids = (
        encode(served.tokenizer, text, most_tokens=most) if isinstance(text, str) else text for text in given
    )
    return [ids[: body.truncate_prompt_tokens] for ids in token_ids]


def _encoded(vector: Sequence[float], form: str | None) -> list[float] | str:
    if form == "base64":
        return b64encode(pack(f"<{len(vector)}f", *vector)).decode("ascii")
    return list(vector)
