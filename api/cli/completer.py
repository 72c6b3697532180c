"""Completer: turns rows of prompts into rows of results, several at a time."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from ...engine import FinishReason, OutputStream
from ...errors import MillstreamError, ModelStateError
from ...scheduler import SamplingParams
from .batch_file import InputRow, Result, ResultRow, Row, SampleRow
from .openai_batch import BatchCaller, BatchRequest
from .running import PromptMaker, RunningModel


class Completer:
    """Turns input rows into result rows, with one running model."""

    def __init__(self, model: RunningModel, maker: PromptMaker, sampling: Mapping[str, Any]) -> None:
        self._model = model
        self._maker = maker
        self._sampling = sampling

    @cached_property
    def _batch(self) -> BatchCaller:
        return BatchCaller(self._model.engine, self._model.config)

    async def complete(self, row: Row) -> Result:
        """The row's result; what is wrong with the row alone becomes its error.

        Raises:
            ModelStateError: the model does not run any more.
        """
        if isinstance(row, BatchRequest):
            return await self._batch.answer(row)
        return await self._complete(row)

    async def _complete(self, row: InputRow) -> ResultRow:
        blank = ResultRow(
            index=row.index, custom_id=row.custom_id, model=self._model.name, extra=row.extra, error=row.error
        )
        if row.error is not None:
            return blank
        try:
            params = self._model.sampling_params(self._sampling, row.params)
            streams = await self._model.start(self._prompt(row), params)
        except ModelStateError:
            raise
        except MillstreamError as error:
            return msgspec.structs.replace(blank, error=str(error))
        outputs = [await _collect(stream, params) for stream in streams]
        first = streams[0]
        prompt_logprobs: list[float | None] | msgspec.UnsetType = msgspec.UNSET
        if params.prompt_logprobs is not None:
            prompt_logprobs = [None if entry is None else entry.logprob for entry in first.prompt_logprobs]
        return msgspec.structs.replace(
            blank,
            outputs=outputs,
            prompt_tokens=first.num_prompt_tokens,
            cached_tokens=first.num_cached_tokens,
            prompt_logprobs=prompt_logprobs,
            error=next((stream.error for stream in streams if stream.error is not None), None),
        )

    def _prompt(self, row: InputRow) -> Sequence[int]:
        if row.messages is not None:
            return self._maker.from_messages(row.messages)
        return self._maker.from_text(row.prompt) if isinstance(row.prompt, str) else row.prompt


async def complete_rows(
    completer: Completer, rows: Iterable[Row], write: Callable[[Result], None], limit: int
) -> None:
    """Complete all rows, at most `limit` of them at a time, and write each when it is ready."""
    remaining = iter(rows)

    async def one_after_the_other() -> None:
        for row in remaining:
            write(await completer.complete(row))

    tasks = [asyncio.ensure_future(one_after_the_other()) for _ in range(limit)]
    try:
        await asyncio.gather(*tasks)
    finally:
        # Otherwise the others would write down that the engine's end cut them off.
        for task in tasks:
            task.cancel()


async def _collect(stream: OutputStream, params: SamplingParams) -> SampleRow:
    await stream.await_finished()
    output = stream.get_nowait()
    reason = stream.finish_reason or FinishReason.ERROR
    return SampleRow(
        text=output.text,
        finish_reason=reason.value,
        output_tokens=len(output.token_ids),
        token_ids=output.token_ids,
        logprobs=[entry.logprob for entry in output.logprobs] if params.logprobs else msgspec.UNSET,
        top_logprobs=[list(entry.top) for entry in output.logprobs] if params.top_logprobs else msgspec.UNSET,
    )
