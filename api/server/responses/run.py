"""ResponseRun: one response on its way, from the request to an object that can be kept."""

from collections.abc import AsyncIterator, Callable, Mapping
from time import time
from typing import Any

from ....engine import Output
from ....errors import InvalidArgument
from ....scheduler import FinishReason, SamplingParams
from ..answer_stream import AnswerStream
from ..errors import ApiError
from ..generation import Generation
from ..sampling import Caller, read_request
from ..schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningConfig,
    Response,
    ResponseFailure,
    ResponseRequest,
    ResponseStatus,
    ResponseUsage,
    TextConfig,
)
from ..service import ModelService, Target
from .conversation import Conversation
from .events import Completed, Created, Failed, Incomplete, InProgress
from .output import OutputBuilder
from .store import KeptResponse

_LOGPROBS = "message.output_text.logprobs"

_FAILURES: Mapping[FinishReason, str] = {
    FinishReason.TIMEOUT: "the response's time was up",
    FinishReason.QUEUE_TIMEOUT: "the response's time in the queue was up",
    FinishReason.CANCELLED: "the model was stopped",
    FinishReason.INTERRUPTED: "the response outgrew the whole cache",
    FinishReason.ERROR: "the response failed",
}
"""Ends that are neither the model's nor a limit that was asked for."""


async def start_response(
    body: ResponseRequest,
    conversation: Conversation,
    previous: KeptResponse | None,
    service: ModelService,
    target: Target,
    caller: Caller,
    *,
    store: bool,
) -> "ResponseRun":
    """Queue the request for an answer to a conversation. `store` says whether the response will be kept.

    Raises:
        MillstreamError, ApiError: the conversation or a field is refused, or too much is queued.
    """
    if body.top_logprobs and not _wants_logprobs(body):
        raise InvalidArgument("top_logprobs", body.top_logprobs, f"0 unless include has {_LOGPROBS!r}")
    served = target.served
    wanted = read_request(
        body,
        target,
        caller,
        defaults=served.chat_defaults,
        limit="max_output_tokens",
        max_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if _wants_logprobs(body) else None,
    )
    prompt = await conversation.prompt(
        served.handler,
        service.texts,
        served.max_length,
        max_output_tokens=body.max_output_tokens,
        truncate=body.truncation == "auto",
        chat_template=body.chat_template,
        template_variables=_template_variables(body),
    )
    generation = await Generation.start(service, target, [prompt], wanted.params, wanted.options)
    return ResponseRun(
        body, wanted.params, conversation, previous, generation, caller.tenant.name, store=store
    )


def _wants_logprobs(body: ResponseRequest) -> bool:
    return _LOGPROBS in (body.include or ())


def _template_variables(body: ResponseRequest) -> dict[str, Any]:
    named = {
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "verbosity": body.text.verbosity if body.text is not None else None,
    }
    given = {name: value for name, value in named.items() if value is not None}
    return {**given, **(body.chat_template_kwargs or {})}


class ResponseRun(AnswerStream):
    """One response that is being made; used once, whole or as a stream."""

    def __init__(
        self,
        body: ResponseRequest,
        params: SamplingParams,
        conversation: Conversation,
        previous: KeptResponse | None,
        generation: Generation,
        tenant: str,
        *,
        store: bool,
    ) -> None:
        served = generation.target.served
        super().__init__("resp_", generation)
        self.tenant = tenant
        self.conversation = conversation
        self._body = body
        self._params = params
        self._previous = previous
        self._store = store
        self._keep: Callable[[Response], None] | None = None
        self._output = OutputBuilder(
            served.tokenizer,
            served.handler.answer_parser(
                generation.prompts[0], counts=True, skip_special_tokens=params.skip_special_tokens
            ),
            with_logprobs=_wants_logprobs(body),
        )

    @property
    def background(self) -> bool:
        """Whether it goes on when nobody waits for it."""
        return bool(self._body.background)

    def so_far(self) -> Response:
        """The response before it has ended."""
        waits = self.generation.streams[0].times.first_scheduled is None
        return self._response("queued" if waits and self.background else "in_progress")

    async def whole(self) -> Response:
        """The response at its end.

        Raises:
            ApiError: it failed, or its time was up before it began.
        """
        (output,) = await self.generation.outputs()
        return self._end(output)

    async def end(self) -> Response:
        """The response at its end, whatever that is."""
        stream = self.generation.streams[0]
        await stream.await_finished()
        return self._end(stream.get_nowait())

    def cancelled(self) -> Response:
        """The response as far as it came, for the one who has cancelled it."""
        for _ in self._output.push(self.generation.streams[0].get_nowait()):
            pass
        for _ in self._output.end(completed=False):
            pass
        return self._response("cancelled", usage=self._usage())

    async def events(self, keep: Callable[[Response], None]) -> AsyncIterator[bytes]:
        """All events; `keep` gets the response right before the last one."""
        self._keep = keep
        begun = self._response("in_progress").model_dump()
        yield Created(self._output.number(), begun).encode()
        yield InProgress(self._output.number(), begun).encode()
        async for data in self.stream():
            yield data

    def delta(self, index: int, output: Output, *, first: bool) -> bytes:
        """The events of the output's items."""
        return b"".join(event.encode() for event in self._output.push(output))

    def check_end(self, index: int) -> None:
        """However it has ended, the response says so itself."""

    def final(self, error: ApiError | None) -> bytes:
        """The ends of the items, and the whole response."""
        output = self._output
        ends = b"".join(event.encode() for event in output.end(completed=self._is_complete))
        response = self._ended()
        if self._keep is not None:
            self._keep(response)
        kinds = {"completed": Completed, "incomplete": Incomplete}
        return ends + kinds.get(response.status, Failed)(output.number(), response.model_dump()).encode()

    def kept(self, response: Response) -> KeptResponse:
        """The response at its end, for the store."""
        return KeptResponse.of(response, self.conversation.items, self.tenant, self._previous)

    def _end(self, output: Output) -> Response:
        for _ in self._output.push(output):
            pass
        for _ in self._output.end(completed=self._is_complete):
            pass
        return self._ended()

    @property
    def _is_complete(self) -> bool:
        return self.generation.streams[0].finish_reason is FinishReason.STOP

    def _ended(self) -> Response:
        """The response, with the output that was built."""
        stream = self.generation.streams[0]
        reason = stream.finish_reason or FinishReason.ERROR
        usage = self._usage()
        if reason is FinishReason.STOP:
            return self._response("completed", usage=usage, completed_at=int(time()))
        if reason is FinishReason.LENGTH:
            details = IncompleteDetails(reason="max_output_tokens")
            return self._response("incomplete", usage=usage, incomplete_details=details)
        message = stream.error or _FAILURES[reason]
        failure = ResponseFailure(code="server_error", message=message)
        return self._response("failed", usage=usage, error=failure)

    def _usage(self) -> ResponseUsage:
        usage = self.generation.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._output.reasoning_tokens),
            total_tokens=usage.total_tokens,
        )

    def _response(self, status: ResponseStatus, **ending: Any) -> Response:
        body, params = self._body, self._params
        return Response(
            id=self.id,
            created_at=self.created,
            status=status,
            background=self.background,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            model=self.generation.target.name,
            output=list(self._output.items),
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            prompt_cache_key=body.prompt_cache_key,
            prompt_cache_retention=body.prompt_cache_retention,
            reasoning=body.reasoning or ReasoningConfig(),
            safety_identifier=body.safety_identifier,
            store=self._store,
            temperature=params.temperature,
            text=body.text or TextConfig(),
            tool_choice=body.tool_choice or "auto",
            tools=[],
            top_logprobs=params.top_logprobs,
            top_p=params.top_p,
            truncation=body.truncation or "disabled",
            user=body.user,
            **ending,
        )
