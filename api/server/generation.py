"""Generation: the engine's requests behind one HTTP request, which end when the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from ...engine import Output, OutputStream, PoolingParams, RequestHandle, RequestOptions
from ...scheduler import FinishReason, SamplingParams
from .errors import OVERLOADED, SERVER, ApiError
from .schemas.common import FinishName, PromptTokensDetails, Usage
from .service import ModelService, Target

_FINISH_NAMES: Mapping[FinishReason, FinishName] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.TIMEOUT: "timeout",
    FinishReason.QUEUE_TIMEOUT: "timeout",
    FinishReason.INTERRUPTED: "interrupted",
}


class Generation:
    """One engine request per prompt, `samples` choices each; choice i of all belongs to prompt i // samples.

    Used as a context: what has not ended when it is left is stopped at the next step.
    """

    def __init__(
        self,
        service: ModelService,
        target: Target,
        prompts: Sequence[Sequence[int]],
        handles: Sequence[RequestHandle],
        tenant: str,
    ) -> None:
        """`handles` are the requests that have been started, one for each prompt."""
        self.target = target
        self.prompts = prompts
        self.samples = len(handles[0].streams)
        self._service = service
        self._tenant = tenant
        self._handles = handles
        self.streams: tuple[OutputStream, ...] = tuple(
            stream for handle in handles for stream in handle.streams
        )

    @classmethod
    async def start(
        cls,
        service: ModelService,
        target: Target,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | PoolingParams,
        options: RequestOptions,
    ) -> Self:
        """Queue the requests, for text or for embeddings: all of them, or none.

        Raises:
            InvalidArgument, LimitExceeded, NotSupported, QueueFull, AdapterNotFound, ModelStateError
        """
        engine, name = service.engine, target.served.name
        if isinstance(params, PoolingParams):
            started = await engine.start_embeddings(name, prompts, params, options)
        else:
            started = await engine.start_requests(name, prompts, params, options)
        return cls(service, target, prompts, [handle for handle, _ in started], options.tenant)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            if not handle.finished:
                self._service.engine.stop_request(self.target.served.name, handle)
            self._service.report_finished(self.target.served.name, self._tenant, handle.streams)

    def prompt_of(self, choice: int) -> Sequence[int]:
        """Token ids of the prompt that a choice continues."""
        return self.prompts[choice // self.samples]

    async def events(self) -> AsyncIterator[tuple[int, Output]]:
        """(choice, what is new of it) as it comes, up to the end of every choice."""
        if len(self.streams) == 1:
            stream, ended = self.streams[0], False
            while not ended:
                output = await stream.aget()
                ended = output.finish_reason is not None
                yield 0, output
            return
        ready: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()

        async def forward(choice: int, stream: OutputStream) -> None:
            async for output in stream:
                ready.put_nowait((choice, output))

        tasks = [asyncio.create_task(forward(choice, stream)) for choice, stream in enumerate(self.streams)]
        try:
            left = len(tasks)
            while left:
                choice, output = await ready.get()
                left -= output.finish_reason is not None
                yield choice, output
        finally:
            for task in tasks:
                task.cancel()

    async def outputs(self) -> list[Output]:
        """The whole output of each choice, once all have ended.

        Raises:
            ApiError: a choice failed, or its time was up before it had any output.
        """
        for stream in self.streams:
            await stream.await_finished()
        for stream in self.streams:
            self.require_success(stream)
        return [stream.get_nowait() for stream in self.streams]

    async def embeddings(self) -> list[tuple[float, ...]]:
        """The embedding of each prompt.

        Raises:
            ApiError: one failed, or its time was up.
        """
        await self.outputs()
        return [stream.embedding or () for stream in self.streams]

    def require_success(self, stream: OutputStream) -> None:
        """Raise ApiError where a choice has ended in a way that is no answer."""
        reason = stream.finish_reason
        if reason is FinishReason.ERROR:
            raise ApiError(500, stream.error or "the request failed", kind=SERVER, code="internal_error")
        if stream.num_output_tokens or stream.embedding is not None:
            return
        if reason is FinishReason.QUEUE_TIMEOUT:
            raise ApiError(
                504, "the request's time in the queue was up", kind=OVERLOADED, code="queue_timeout"
            )
        if reason is FinishReason.TIMEOUT:
            raise ApiError(
                504, "the request's time was up before its first token", kind=OVERLOADED, code="timeout"
            )
        if reason is FinishReason.CANCELLED:
            raise ApiError(503, "the model was stopped", kind=SERVER, code="model_stopped")

    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = sum(len(ids) for ids in self.prompts)
        completion = sum(stream.num_output_tokens for stream in self.streams)
        cached = sum(handle.stream.num_cached_tokens for handle in self._handles)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


def finish_name(reason: FinishReason) -> FinishName:
    """The wire's word for why a choice ended. ERROR has none: it is told as an error."""
    return _FINISH_NAMES[reason]
