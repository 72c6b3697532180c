"""AnswerStream: the answers to one request as a stream; two hooks say what a route's events look like."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from time import time

from ...engine import Output
from .errors import ApiError
from .generation import Generation
from .ids import new_id
from .sse import DONE


class AnswerStream(ABC):
    """The answers of one request, on their way to a client; streamed at most once."""

    def __init__(self, prefix: str, generation: Generation) -> None:
        """`prefix` begins the answer's id."""
        self.id = new_id(prefix)
        self.created = int(time())
        """Seconds since the epoch."""
        self.generation = generation

    async def stream(self) -> AsyncIterator[bytes]:
        """All events, of all choices; a failure on the way is an event, too."""
        begun: set[int] = set()
        error: ApiError | None = None
        try:
            async for index, output in self.generation.events():
                if output.finish_reason is not None:
                    self.check_end(index)
                first = index not in begun
                if first:
                    begun.add(index)
                if data := self.delta(index, output, first=first):
                    yield data
        except ApiError as failure:
            error = failure
        yield self.final(error)

    @abstractmethod
    def delta(self, index: int, output: Output, *, first: bool) -> bytes:
        """The events that tell of what is new of a choice; none where there is nothing to tell.

        `first` marks the beginning of a choice; at its end the output has its finish reason.
        """

    def final(self, error: ApiError | None) -> bytes:
        """The last events: what has gone wrong, or else the usage where it is wanted, and [DONE]."""
        if error is not None:
            return b"data: " + error.body() + b"\n\n" + DONE
        return self.usage_event() + DONE

    def usage_event(self) -> bytes:
        """Tells of the tokens of the whole request; nothing where nobody has asked for it."""
        return b""

    def check_end(self, index: int) -> None:
        """Raise ApiError where a choice has ended in a way that is no answer."""
        self.generation.require_success(self.generation.streams[index])
