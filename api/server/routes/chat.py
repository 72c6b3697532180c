"""/v1/chat/completions: answers to conversations."""

from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from ....engine import Output
from ....errors import InvalidArgument
from ....scheduler import FinishReason
from ...handlers import AnswerDelta
from ...models import Model
from ..answer_stream import AnswerStream
from ..bodies import BodyRoute
from ..generation import Generation, finish_name
from ..logprobs import chat_logprobs, prompt_logprobs, prompt_logprobs_in_chunk
from ..sampling import Caller, read_request, shortened
from ..schemas.chat import AssistantMessage, ChatChoice, ChatCompletion, ChatRequest
from ..schemas.chunks import ChatChunk, ChatChunkChoice, ChatDelta
from ..schemas.common import FinishName
from ..service import ModelService, Target
from ..sse import TextEvent, event
from .context import (
    AskedBy,
    Config,
    Service,
    check_template,
    continuous_usage,
    respond,
    responses_of,
    target_of,
    usage_in_chunk,
)

Answer = TypeVar("Answer", bound="ChatAnswer")

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


@router.post(
    "/v1/chat/completions",
    response_class=Response,
    responses=responses_of(ChatCompletion),
)
async def create_chat_completion(
    body: ChatRequest, request: Request, service: Service, config: Config, caller: AskedBy
) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    target = target_of(request, service, body.model)
    check_template(body.chat_template, target.served, config)
    answer = await start_chat(body, service, target, caller, ChatAnswer)
    return await respond(request, config, answer, stream=bool(body.stream))


async def start_chat(
    body: ChatRequest,
    service: ModelService,
    target: Target,
    caller: Caller,
    kind: "type[Answer]",
) -> "Answer":
    """Queue the requests for a conversation's answers, which `kind` will tell.

    Raises:
        MillstreamError: the conversation or a field is refused, or too much is queued.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidArgument("top_logprobs", body.top_logprobs, "0 unless logprobs is true")
    if body.echo and not body.continue_final_message:
        raise InvalidArgument("echo", True, "false unless continue_final_message is true")
    wanted = read_request(
        body,
        target,
        caller,
        defaults=target.served.chat_defaults,
        limit="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    prompt = await service.texts.run_long(_size(body), _prompt, body, target.served)
    return kind(body, await Generation.start(service, target, [prompt], wanted.params, wanted.options))


def _size(body: ChatRequest) -> int:
    """About how many characters there are to read; the rest of a message counts as one."""
    parts = (message.content or "" for message in body.messages)
    return sum(
        1 + (len(part) if isinstance(part, str) else sum(len(text.text) for text in part)) for part in parts
    )


def _prompt(body: ChatRequest, served: Model) -> list[int]:
    """Token ids of the conversation. Raises InvalidArgument, LimitExceeded, NotSupported."""
    begins_answer = body.add_generation_prompt
    prompt = served.handler.prompt(
        [message.model_dump(exclude_unset=True) for message in body.messages],
        add_generation_prompt=not body.continue_final_message if begins_answer is None else begins_answer,
        continue_final_message=bool(body.continue_final_message),
        chat_template=body.chat_template,
        template_variables=_template_variables(body),
        most_tokens=served.max_length - 1 if body.truncate_prompt_tokens is None else None,
    )
    return shortened(prompt, body.truncate_prompt_tokens)


def _template_variables(body: ChatRequest) -> dict[str, Any]:
    named = {"reasoning_effort": body.reasoning_effort, "verbosity": body.verbosity}
    given = {name: value for name, value in named.items() if value is not None}
    return {**given, **(body.chat_template_kwargs or {})}


class ChatAnswer(AnswerStream):
    """The answers of one request, as one object or as a stream of chunks."""

    def __init__(self, body: ChatRequest, generation: Generation) -> None:
        super().__init__("chatcmpl-", generation)
        self._body = body
        self._tokenizer = generation.target.served.tokenizer
        self._echo = _last_text(body) if body.echo else ""
        handler = generation.target.served.handler
        self._parsers = [handler.answer_parser(generation.prompts[0]) for _ in generation.streams]
        self._with_reasoning = body.include_reasoning is not False
        self._only_text = not (
            body.logprobs or body.return_token_ids or continuous_usage(body.stream_options)
        )
        """Whether the events between the first and the last of a choice have nothing but text to tell."""
        self._text_events = [
            TextEvent(partial(self._text_event, index))
            for index in range(len(generation.streams) if body.stream and self._only_text else 0)
        ]

    async def completion(self) -> ChatCompletion:
        """The whole answer.

        Raises:
            ApiError: it failed, or its time was up before it began.
        """
        outputs = await self.generation.outputs()
        choices = [self._choice(index, output) for index, output in enumerate(outputs)]
        more: dict[str, Any] = {}
        if self._body.prompt_logprobs is not None:
            entries = self.generation.streams[0].prompt_logprobs
            more["prompt_logprobs"] = prompt_logprobs(self._tokenizer, self.generation.prompts[0], entries)
        if self._body.return_token_ids:
            more["prompt_token_ids"] = list(self.generation.prompts[0])
        return ChatCompletion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.generation.target.name,
            choices=choices,
            usage=self.generation.usage(),
            **more,
        )

    def _choice(self, index: int, output: Output) -> ChatChoice:
        text = self._parsers[index].push(output.text, ended=True)
        stream = self.generation.streams[index]
        message: dict[str, Any] = {"role": "assistant", "content": self._echo + text.content, "refusal": None}
        if text.reasoning and self._with_reasoning:
            message["reasoning_content"] = text.reasoning
        more: dict[str, Any] = {}
        if self._body.return_token_ids:
            more["token_ids"] = output.token_ids
        return ChatChoice(
            index=index,
            message=AssistantMessage(**message),
            logprobs=chat_logprobs(self._tokenizer, output) if self._body.logprobs else None,
            finish_reason=finish_name(stream.finish_reason or FinishReason.ERROR),
            stop_reason=stream.stop_cause,
            **more,
        )

    def parsed(self, index: int, output: Output) -> AnswerDelta:
        """The text of a choice's next output, parted."""
        return self._parsers[index].push(output.text, ended=output.finish_reason is not None)

    def delta(self, index: int, output: Output, *, first: bool) -> bytes:
        """A chunk, behind one with the role at the beginning."""
        begin = self._chunk(index, ChatDelta(role="assistant", content=self._echo)) if first else b""
        return begin + self._delta(index, self.parsed(index, output), output)

    def usage_event(self) -> bytes:
        """A chunk without choices."""
        options = self._body.stream_options
        return event(self._event((), usage=True)) if options is not None and options.include_usage else b""

    def _delta(self, index: int, parts: AnswerDelta, output: Output) -> bytes:
        """The event of one delta; none where there is nothing to tell."""
        body, content = self._body, parts.content
        reasoning = parts.reasoning if self._with_reasoning else ""
        ended = output.finish_reason is not None
        if content and self._only_text and not (reasoning or ended):
            return self._text_events[index](content)
        if not (content or reasoning or ended or body.logprobs or body.return_token_ids):
            return b""
        delta = ChatDelta(
            content=content if content or not reasoning else msgspec.UNSET,
            reasoning_content=reasoning or msgspec.UNSET,
        )
        return self._chunk(index, delta, output)

    def _text_event(self, index: int, text: str) -> bytes:
        return event(self._event((ChatChunkChoice(index, ChatDelta(content=text), None, None),)))

    def _chunk(self, index: int, delta: ChatDelta, output: Output | None = None) -> bytes:
        logprobs: dict[str, Any] | None = None
        token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
        finish: FinishName | None = None
        stop: int | str | msgspec.UnsetType | None = msgspec.UNSET
        if output is not None:
            if self._body.logprobs:
                logprobs = chat_logprobs(self._tokenizer, output).model_dump()
            if self._body.return_token_ids:
                token_ids = output.token_ids
            if output.finish_reason is not None:
                finish = finish_name(output.finish_reason)
                stop = self.generation.streams[index].stop_cause
        choice = ChatChunkChoice(index, delta, logprobs, finish, stop, token_ids)
        return event(self._event((choice,), first=output is None))

    def _event(
        self, choices: tuple[ChatChunkChoice, ...], *, usage: bool = False, first: bool = False
    ) -> ChatChunk:
        counted = usage_in_chunk(self.generation, self._body.stream_options, at_end=usage)
        prompt_ids: Any = msgspec.UNSET
        scores: Any = msgspec.UNSET
        if first and self._body.return_token_ids:
            prompt_ids = list(self.generation.prompts[0])
        if first and self._body.prompt_logprobs is not None:
            entries = self.generation.streams[0].prompt_logprobs
            scores = prompt_logprobs_in_chunk(self._tokenizer, self.generation.prompts[0], entries)
        return ChatChunk(
            self.id,
            "chat.completion.chunk",
            self.created,
            self.generation.target.name,
            choices,
            counted,
            prompt_ids,
            scores,
        )


def _last_text(body: ChatRequest) -> str:
    content = body.messages[-1].content
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""
