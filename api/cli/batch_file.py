"""Files of prompts and results, one JSON object a line; a file of results says which rows are done."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...errors import InvalidArgument
from ...scheduler.sampling_fields import FIELDS_BY_NAME

Key = int | str
"""A row's custom_id, or its index where it has none."""


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One output of a row."""

    text: str
    finish_reason: str
    output_tokens: int
    token_ids: list[int]
    logprobs: list[float] | msgspec.UnsetType = msgspec.UNSET
    """Log-probability of each token, where asked for."""
    top_logprobs: list[list[tuple[int, float]]] | msgspec.UnsetType = msgspec.UNSET
    """(token id, log-probability) of the most likely tokens at each position, where asked for."""


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one row: outputs, or an error."""

    index: int
    """Place of the row in the input, from 0; blank lines do not count."""
    custom_id: str | None
    model: str
    outputs: list[SampleRow] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    prompt_logprobs: list[float | None] | msgspec.UnsetType = msgspec.UNSET
    extra: dict[str, Any] = {}
    """The input row's other fields, as they were."""
    error: str | None = None

    @property
    def key(self) -> Key:
        """What a later run knows the row by."""
        return self.index if self.custom_id is None else self.custom_id


class InputRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row to complete. `error` says why it cannot be; then nothing else in it counts."""

    index: int
    custom_id: str | None = None
    prompt: str | list[int] = ""
    messages: list[dict[str, Any]] | None = None
    params: dict[str, Any] = {}
    """Fields of SamplingParams for this row alone."""
    extra: dict[str, Any] = {}
    error: str | None = None

    @property
    def key(self) -> Key:
        """What a later run knows the row by."""
        return self.index if self.custom_id is None else self.custom_id


class _Done(msgspec.Struct):
    index: int
    custom_id: str | None
    model: str
    error: str | None

    @property
    def key(self) -> Key:
        return self.index if self.custom_id is None else self.custom_id


def read_rows(lines: Iterable[bytes | str]) -> Iterator[InputRow]:
    """Rows of an input file.

    A row is an object with `prompt` (a text or token ids) or `messages` (a conversation), and may have
    `custom_id`, `params` (fields of SamplingParams) and anything else, which comes back as `extra`. A line
    that is none of this, or repeats a custom_id, becomes a row with an error.
    """
    seen: set[str] = set()
    index = 0
    for line in lines:
        if not line.strip():
            continue
        row = _parse(line, index)
        if row.custom_id is not None and row.custom_id in seen:
            row = InputRow(index=index, error=f"custom_id {row.custom_id!r} occurs twice")
        elif row.custom_id is not None:
            seen.add(row.custom_id)
        yield row
        index += 1


def _parse(line: bytes | str, index: int) -> InputRow:
    try:
        fields = msgspec.json.decode(line)
        if not isinstance(fields, dict):
            return InputRow(index=index, error="the line is no JSON object")
        known = {name: fields.pop(name) for name in _ROW_FIELDS if name in fields}
        row = msgspec.convert({**known, "index": index, "extra": fields}, InputRow)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        return InputRow(index=index, error=f"the row is malformed: {error}")
    return msgspec.structs.replace(row, error=_problem(row, known))


_ROW_FIELDS = ("custom_id", "prompt", "messages", "params")


def _problem(row: InputRow, known: Mapping[str, Any]) -> str | None:
    """What is wrong with a row whose fields have the right types."""
    if ("prompt" in known) == ("messages" in known):
        return "the row needs either prompt or messages"
    misplaced = [name for name in row.extra if name in FIELDS_BY_NAME]
    if misplaced:
        return f"{', '.join(misplaced)} belongs into params"
    return None


def finished_rows(path: Path, model: str, *, retry_failed: bool = False) -> set[Key]:
    """Keys of the rows that a file of results holds; none where there is no file.

    A last line without its end, left by a run that was killed, is taken out of the file; with `retry_failed`
    so are the rows with an error.

    Raises:
        InvalidArgument: the file holds something else, or results of another model.
    """
    if not path.exists():
        return set()
    keys: set[Key] = set()
    kept: list[bytes] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        done = _done(path, number, line, model)
        if done.error is None or not retry_failed:
            keys.add(done.key)
            kept.append(line)
    if len(kept) < len(lines):
        beside = path.with_name(f"{path.name}.new")
        beside.write_bytes(b"".join(kept))
        beside.replace(path)
    return keys


def _done(path: Path, number: int, line: bytes, model: str) -> _Done:
    try:
        done = msgspec.json.decode(line, type=_Done)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            "--output", str(path), f"a new file, or one of results only (line {number} is none)"
        ) from error
    if done.model != model:
        raise InvalidArgument(
            "--output", str(path), f"a new file, or one of results of {model} (line {number}: {done.model})"
        )
    return done
