"""/v1/completions: continuations of prompts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from ....engine import Output
from ....errors import InvalidArgument
from ....scheduler import FinishReason
from ...models import Model
from ..answer_stream import AnswerStream
from ..bodies import BodyRoute
from ..errors import ApiError
from ..generation import Generation, finish_name
from ..logprobs import CompletionTable, joined, prompt_logprobs, prompt_logprobs_in_chunk
from ..sampling import Caller, read_request, shortened
from ..schemas.chunks import CompletionChunk, CompletionChunkChoice
from ..schemas.common import FinishName
from ..schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from ..service import ModelService, Target
from ..sse import TextEvent, event
from ..text_pool import encode
from .context import (
    AskedBy,
    Config,
    Service,
    continuous_usage,
    respond,
    responses_of,
    target_of,
    usage_in_chunk,
)

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])

_MAX_CHOICES = 2048
"""Prompts times n in one request."""


@router.post(
    "/v1/completions",
    response_class=Response,
    responses=responses_of(Completion),
)
async def create_completion(
    body: CompletionRequest, request: Request, service: Service, config: Config, caller: AskedBy
) -> Response:
    """Continue a prompt, or each of several, whole or as server-sent events."""
    target = target_of(request, service, body.model)
    answer = await start_completion(body, service, target, caller)
    return await respond(request, config, answer, stream=bool(body.stream))


async def start_completion(
    body: CompletionRequest, service: ModelService, target: Target, caller: Caller
) -> "CompletionAnswer":
    """Queue the requests for all prompts.

    Raises:
        MillstreamError: a prompt or a field is refused, or too much is queued.
    """
    if body.max_tokens == 0 and not body.echo:
        raise InvalidArgument("max_tokens", 0, "1 or more without echo")
    wanted = read_request(
        body,
        target,
        caller,
        defaults=target.served.text_defaults,
        limit="max_tokens",
        max_tokens=max(body.max_tokens, 1) if body.max_tokens is not None else None,
        logprobs=body.logprobs,
    )
    params = wanted.params
    if body.echo and body.logprobs is not None and params.prompt_logprobs is None:
        params = msgspec.structs.replace(params, prompt_logprobs=body.logprobs)
    prompts = await service.texts.run_long(_size(body), _prompts, body, target.served)
    if len(prompts) * (body.n or 1) > _MAX_CHOICES:
        given = f"prompt has {len(prompts)} prompts and n is {body.n or 1}"
        message = f"{given}; allowed: {_MAX_CHOICES} choices in all"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return CompletionAnswer(body, await Generation.start(service, target, prompts, params, wanted.options))


def _size(body: CompletionRequest) -> int:
    """How many characters there are to be made tokens of."""
    given = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    return sum(map(len, given)) if isinstance(given[0], str) else 0


def _prompts(body: CompletionRequest, served: Model) -> list[list[int]]:
    """Token ids of all prompts. Raises InvalidArgument, LimitExceeded."""
    given: Sequence[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(given[0], int):
        given = [given]
    special = body.add_special_tokens is not False
    most = served.max_length - 1 if body.truncate_prompt_tokens is None else None
    token_ids = (
        encode(served.tokenizer, prompt, add_special_tokens=special, most_tokens=most)
        if isinstance(prompt, str)
        else prompt
        for prompt in given
    )
    return [shortened(ids, body.truncate_prompt_tokens) for ids in token_ids]


class CompletionAnswer(AnswerStream):
    """The continuations of one request, as one object or as a stream of chunks."""

    def __init__(self, body: CompletionRequest, generation: Generation) -> None:
        super().__init__("cmpl-", generation)
        self._body = body
        self._tokenizer = generation.target.served.tokenizer
        self._tables = [CompletionTable(self._tokenizer) for _ in generation.streams]
        self._without_output = body.max_tokens == 0
        self._only_text = not (
            self._without_output
            or body.logprobs is not None
            or body.return_token_ids
            or continuous_usage(body.stream_options)
        )
        """Whether the events between the first and the last of a choice have nothing but text to tell."""
        self._text_events = [
            TextEvent(partial(self._text_event, index))
            for index in range(len(generation.streams) if body.stream and self._only_text else 0)
        ]

    async def completion(self) -> Completion:
        """The whole answer.

        Raises:
            ApiError: a choice failed, or its time was up before it began.
        """
        outputs = await self.generation.outputs()
        choices = [self._choice(index, output) for index, output in enumerate(outputs)]
        return Completion(
            id=self.id,
            object="text_completion",
            created=self.created,
            model=self.generation.target.name,
            choices=choices,
            usage=self.generation.usage(),
        )

    def _choice(self, index: int, output: Output) -> CompletionChoice:
        stream = self.generation.streams[index]
        text, logprobs = self._echo(index)
        if not self._without_output:
            text += output.text
            if self._body.logprobs is not None:
                scored = self._tables[index].output(output)
                logprobs = scored if logprobs is None else joined(logprobs, scored)
        more: dict[str, Any] = {}
        prompt = self.generation.prompt_of(index)
        if self._body.prompt_logprobs is not None and index % self.generation.samples == 0:
            more["prompt_logprobs"] = prompt_logprobs(self._tokenizer, prompt, stream.prompt_logprobs)
        if self._body.return_token_ids:
            more["token_ids"] = [] if self._without_output else output.token_ids
            more["prompt_token_ids"] = list(prompt)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_name(stream.finish_reason or FinishReason.ERROR),
            stop_reason=stream.stop_cause,
            **more,
        )

    def _echo(self, index: int) -> tuple[str, CompletionLogprobs | None]:
        """What stands before a choice's output where it was asked for: its prompt, and the prompt's rows."""
        if not self._body.echo:
            return "", None
        prompt = self.generation.prompt_of(index)
        text = self._tokenizer.decode(prompt, skip_special_tokens=self._body.skip_special_tokens is not False)
        if self._body.logprobs is None:
            return text, None
        # Only the first sample of a prompt reports on it.
        first = self.generation.streams[index - index % self.generation.samples]
        return text, self._tables[index].prompt(prompt, first.prompt_logprobs, self._body.logprobs)

    def delta(self, index: int, output: Output, *, first: bool) -> bytes:
        """A chunk; where only text is to be told, between the first and the last, one that is made faster."""
        ended = output.finish_reason is not None
        if self._only_text and output.text and not (first or ended):
            return self._text_events[index](output.text)
        about_tokens = self._body.logprobs is not None or self._body.return_token_ids
        if first or output.text or ended or about_tokens:
            return self._chunk(index, output, first)
        return b""

    def usage_event(self) -> bytes:
        """A chunk without choices."""
        options = self._body.stream_options
        return event(self._event((), usage=True)) if options is not None and options.include_usage else b""

    def _text_event(self, index: int, text: str) -> bytes:
        return event(self._event((CompletionChunkChoice(index, text, None, None),)))

    def _chunk(self, index: int, output: Output, first: bool) -> bytes:
        text, rows = self._echo(index) if first else ("", None)
        if not self._without_output:
            text += output.text
            if self._body.logprobs is not None:
                scored = self._tables[index].output(output)
                rows = scored if rows is None else joined(rows, scored)
        finish: FinishName | None = None
        stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
        if output.finish_reason is not None:
            finish = finish_name(output.finish_reason)
            stop = self.generation.streams[index].stop_cause
        token_ids: Any = msgspec.UNSET
        prompt_ids: Any = msgspec.UNSET
        scores: Any = msgspec.UNSET
        if self._body.return_token_ids:
            token_ids = [] if self._without_output else output.token_ids
            prompt_ids = list(self.generation.prompt_of(index)) if first else msgspec.UNSET
        if first and self._body.prompt_logprobs is not None and index % self.generation.samples == 0:
            entries = self.generation.streams[index].prompt_logprobs
            prompt = self.generation.prompt_of(index)
            scores = prompt_logprobs_in_chunk(self._tokenizer, prompt, entries)
        choice = CompletionChunkChoice(
            index,
            text,
            None if rows is None else rows.model_dump(),
            finish,
            stop,
            token_ids,
            prompt_ids,
            scores,
        )
        return event(self._event((choice,)))

    def _event(self, choices: tuple[CompletionChunkChoice, ...], *, usage: bool = False) -> CompletionChunk:
        counted = usage_in_chunk(self.generation, self._body.stream_options, at_end=usage)
        return CompletionChunk(
            self.id, "text_completion", self.created, self.generation.target.name, choices, counted
        )
