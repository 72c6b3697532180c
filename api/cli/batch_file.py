"""Files of prompts and results, one JSON object a line; a file of results says which rows are done.

| row of input | |
|---|---|
| prompt or messages | a text or a list of token ids, or a conversation as in /v1/chat/completions |
| custom_id | a string that names the row; else its place in the file does |
| fields of SamplingParams | for this row alone, also under the server's names: max_tokens, min_tokens, … |
| params | an object of such fields |
| anything else | comes back as extra |

A line with `url` and `body` is one of OpenAI's batch format, and so is its result (see `openai_batch`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...errors import InvalidArgument
from ...scheduler.sampling_fields import FIELDS_BY_NAME
from .openai_batch import BatchRequest, BatchResult, is_batch_request, read_batch_request

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
    def failed(self) -> bool:
        """Whether it has an error."""
        return self.error is not None

    @property
    def output_tokens(self) -> int:
        """Of all outputs."""
        return sum(output.output_tokens for output in self.outputs)


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


Row = InputRow | BatchRequest
Result = ResultRow | BatchResult


@dataclass(frozen=True)
class _Done:
    key: Key | None
    """None where nobody can tell which row it was of: it had an error, and is done again."""
    model: str | None
    """None where the line does not say."""
    failed: bool


def read_rows(lines: Iterable[bytes | str]) -> Iterator[Row]:
    """Rows of an input file, in either format.

    A line that is no row, or repeats a custom_id, becomes a row with an error.
    """
    seen: set[str] = set()
    index = 0
    for line in lines:
        if not line.strip():
            continue
        row = _parse(line, index)
        if row.custom_id is not None and row.custom_id in seen:
            row = type(row)(index=index, error=f"custom_id {row.custom_id!r} occurs twice")
        elif row.custom_id is not None:
            seen.add(row.custom_id)
        yield row
        index += 1


def _parse(line: bytes | str, index: int) -> Row:
    try:
        fields = msgspec.json.decode(line)
        if not isinstance(fields, dict):
            return InputRow(index=index, error="the line is no JSON object")
        if is_batch_request(fields):
            return read_batch_request(fields, index)
        params = {name: fields.pop(name) for name in list(fields) if name in FIELDS_BY_NAME}
        known = {name: fields.pop(name) for name in _ROW_FIELDS if name in fields}
        row = msgspec.convert({**known, "index": index, "extra": fields}, InputRow)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        return InputRow(index=index, error=f"the row is malformed: {error}")
    twice = [name for name in params if name in row.params]
    row = msgspec.structs.replace(row, params={**params, **row.params})
    return msgspec.structs.replace(row, error=_problem(known, twice))


_ROW_FIELDS = ("custom_id", "prompt", "messages", "params")


def _problem(known: Mapping[str, Any], twice: Sequence[str]) -> str | None:
    """What is wrong with a row whose fields have the right types."""
    if ("prompt" in known) == ("messages" in known):
        return "the row needs either prompt or messages"
    return f"{', '.join(twice)} stands in params, too" if twice else None


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
        if done.key is not None and not (done.failed and retry_failed):
            keys.add(done.key)
            kept.append(line)
    if len(kept) < len(lines):
        beside = path.with_name(f"{path.name}.new")
        beside.write_bytes(b"".join(kept))
        beside.replace(path)
    return keys


def _done(path: Path, number: int, line: bytes, model: str) -> _Done:
    try:
        fields = msgspec.json.decode(line)
        done = _batch_done(fields) if "response" in fields else _own_done(fields)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise InvalidArgument(
            "--output", str(path), f"a new file, or one of results only (line {number} is none)"
        ) from error
    if done.model is not None and done.model != model:
        raise InvalidArgument(
            "--output", str(path), f"a new file, or one of results of {model} (line {number}: {done.model})"
        )
    return done


def _own_done(fields: Any) -> _Done:
    """Raises ValidationError where a line is no result."""
    row = msgspec.convert(fields, ResultRow)
    key: Key = row.index if row.custom_id is None else row.custom_id
    return _Done(key, row.model, row.failed)


def _batch_done(fields: Any) -> _Done:
    """Raises ValidationError where a line is no result."""
    row = msgspec.convert(fields, BatchResult)
    model = None if row.response is None else row.response.body.get("model")
    return _Done(row.custom_id, model, row.failed)
