"""Answers held against a client's own types, with nothing converted and nothing overlooked."""

from collections.abc import Iterator

from pydantic import BaseModel, TypeAdapter

from ...sse import async_stream_events


def strict(kind, data, *, beyond=()):
    """JSON as a client's type. Fields which that type does not know must be exactly those of `beyond`.

    A path is written as "choices[].stop_reason".
    """
    parsed = TypeAdapter(kind).validate_json(data, strict=True)
    assert sorted(set(_unknown(parsed))) == sorted(beyond)
    return parsed


def _unknown(value, path="") -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}".lstrip(".") for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _unknown(item, f"{path}[]")


async def strict_events(kind, response, *, beyond=()):
    """Server-sent events as a client's type each, up to [DONE]; as `strict`, over all of them together."""
    adapter = TypeAdapter(kind)
    parsed, unknown = [], set()
    data = None
    async for event in async_stream_events(response.iter_bytes()):
        assert data != "[DONE]", f"after the end came {event}"
        data = event
        if data != "[DONE]":
            parsed.append(adapter.validate_json(data, strict=True))
            unknown |= set(_unknown(parsed[-1]))
    assert sorted(unknown) == sorted(beyond)
    return parsed, data == "[DONE]"
