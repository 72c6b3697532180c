"""Server-sent events as tests read them; comments, which keep a silent stream alive, are none."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from millstream.benchmarks.serve.events import EventParser


def whole_events(content: bytes) -> list[str]:
    """Data of the events of a whole body; one that is cut off is none."""
    return [data.decode() for data in EventParser().feed(content)]


def stream_events(response: Any) -> Iterator[str]:
    """Data of the events of a response by httpx, as they come."""
    parser = EventParser()
    for received in response.iter_bytes():
        for data in parser.feed(received):
            yield data.decode()


async def async_stream_events(received: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Data of the events in a stream of bytes, as they come."""
    parser = EventParser()
    async for some in received:
        for data in parser.feed(some):
            yield data.decode()
