"""/tokenize and /detokenize: a model's tokens, as vLLM offers them."""

import msgspec
from fastapi import APIRouter, Request, Response

from ....backends.worker import Tokenizer
from ...models import Model
from ..bodies import BodyRoute
from ..errors import ApiError
from ..logprobs import token_text
from ..schemas.tokens import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from .context import ERRORS, Config, Service, check_template, target_of

router = APIRouter(
    route_class=BodyRoute,
    tags=["Tokens"],
    responses={status: ERRORS[status] for status in (400, 401, 404, 413, 415, 503)},
)


@router.post("/tokenize", response_class=Response, responses={200: {"model": Tokenized}})
async def tokenize(body: TokenizeRequest, request: Request, service: Service, config: Config) -> Response:
    """Token ids of a text or a conversation."""
    if (body.prompt is None) == (body.messages is None):
        given = "missing" if body.prompt is None else "both given"
        message = f"prompt and messages are {given}; allowed: one of the two"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    model = target_of(request, service, body.model).served
    check_template(body.chat_template, model, config)
    return _json(await service.texts.run(_tokenized, body, model))


def _tokenized(body: TokenizeRequest, model: Model) -> bytes:
    """The answer's JSON, which may be as long as the request."""
    if body.messages is not None:
        continued = bool(body.continue_final_message)
        generation = not continued if body.add_generation_prompt is None else body.add_generation_prompt
        tokens = model.handler.prompt(
            [message.model_dump(exclude_unset=True) for message in body.messages],
            add_generation_prompt=generation,
            continue_final_message=continued,
            chat_template=body.chat_template,
            template_variables=body.chat_template_kwargs,
        )
    else:
        special = body.add_special_tokens is not False
        tokens = model.tokenizer.encode(body.prompt or "", add_special_tokens=special)
    texts = [token_text(model.tokenizer, token) for token in tokens] if body.return_token_strs else None
    return msgspec.json.encode(
        {"count": len(tokens), "max_model_len": model.max_length, "tokens": tokens, "token_strs": texts}
    )


@router.post("/detokenize", response_class=Response, responses={200: {"model": Detokenized}})
async def detokenize(body: DetokenizeRequest, request: Request, service: Service) -> Response:
    """The text of token ids."""
    tokenizer = target_of(request, service, body.model).served.tokenizer
    return _json(await service.texts.run(_detokenized, body, tokenizer))


def _detokenized(body: DetokenizeRequest, tokenizer: Tokenizer) -> bytes:
    """The answer's JSON."""
    text = tokenizer.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    return msgspec.json.encode({"prompt": text})


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
