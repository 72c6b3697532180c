"""OutputProcessor: from new token ids to text in output streams, stop strings included."""

from collections.abc import Sequence

from ..backends.worker import TextStream
from ..scheduler import Batch, FinishReason, Request, StepResult, TokenLogprobs
from .embeddings import PoolingParams
from .output_stream import OutputStream, Wakeups


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops))
        self._include_stop = include_stop
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Text that can be shown now; once `found` is set, this is all that remains of the output."""
        held = self._held + text
        # The earliest stop wins, and of those that begin at the same place, the one named first.
        where, _, stop = min(
            ((held.find(stop), rank, stop) for rank, stop in enumerate(self._stops) if stop in held),
            default=(0, 0, None),
        )
        if stop is not None:
            self.found = stop
            self._held = ""
            return held[: where + len(stop)] if self._include_stop else held[:where]
        keep = self._possible_beginning(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What is still held, at an end for another reason."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest suffix of `text` with which some stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            suffix = text[-length:]
            if any(stop.startswith(suffix) for stop in self._stops):
                return length
        return 0


class OutputState:
    """Text side of one request: partial characters, held-back text, and the stream they go to."""

    __slots__ = ("_decoder", "_hidden_stop_ids", "_pooling", "_stops", "request", "stream")

    def __init__(
        self,
        request: Request,
        stream: OutputStream,
        decoder: TextStream | None,
        pooling: PoolingParams | None = None,
    ) -> None:
        """Without a `decoder` only token ids are handed over; then there can be no stop strings.

        `pooling` says what is to be done to the embedding of a request for one.
        """
        params = request.params
        self.request = request
        self.stream = stream
        self._decoder = decoder
        self._pooling = pooling
        self._stops = (
            StopStrings(params.stop, include_stop=params.include_stop_in_output) if params.stop else None
        )
        self._hidden_stop_ids = frozenset() if params.include_stop_in_output else request.stop_ids

    def text_of(self, token: int) -> str:
        """Text that becomes certain with `token`. A stop token that ended the request is not shown."""
        if self._decoder is None:
            return ""
        request = self.request
        if token in self._hidden_stop_ids and request.finish_reason is FinishReason.STOP:
            return ""
        text = self._decoder.push(token)
        if self._stops is None or not text:
            return text
        if len(request.token_ids) < request.min_tokens:
            return self._stops.flush() + text
        return self._stops.push(text)

    def add_prompt_logprobs(self, start: int, entries: Sequence[TokenLogprobs | None]) -> None:
        """Entries from prompt position `start` on; a recompute after preemption brings nothing new."""
        known = self.stream.prompt_logprobs
        known.extend(entries[len(known) - start :] if start <= len(known) else ())

    @property
    def stop_found(self) -> str | None:
        """The stop string that the text has reached."""
        return None if self._stops is None else self._stops.found

    def embedding(self) -> tuple[float, ...] | None:
        """What the request has become, if it was for an embedding and got there."""
        vector = self.request.embedding
        return None if vector is None or self._pooling is None else self._pooling.finish(vector)

    def rest(self) -> str:
        """Text held back so far, at the end."""
        if self._decoder is None or self.stop_found is not None:
            return ""
        text = self._decoder.flush()
        if self._stops is None:
            return text
        shown = self._stops.push(text)
        return shown if self._stops.found is not None else shown + self._stops.flush()


class OutputProcessor:
    """All outputs of one model; the only place that loops over them."""

    def __init__(self) -> None:
        self._outputs: dict[int, OutputState] = {}
        self._wakeups = Wakeups()

    def open(self, output: OutputState) -> None:
        """Take a new request's output in."""
        self._outputs[output.request.request_id] = output

    def live(self) -> list[OutputState]:
        """All open outputs."""
        return list(self._outputs.values())

    def publish(
        self, batch: Batch, served: Sequence[Request], result: StepResult, now: float
    ) -> list[Request]:
        """Hand each request's new token over; returns those whose text has reached a stop string.

        `served[i]` is the request of `batch.chunks[i]`.
        """
        stopped: list[Request] = []
        outputs, wakeups = self._outputs, self._wakeups
        logprobs = result.logprobs
        for chunk, request, token in zip(batch.chunks, served, result.token_ids, strict=True):
            output = outputs[request.request_id]
            if result.prompt_logprobs and chunk.seq in result.prompt_logprobs:
                output.add_prompt_logprobs(chunk.start, result.prompt_logprobs[chunk.seq])
            if token is None:
                continue
            stream = output.stream
            if stream.times.first_token is None:
                stream.times.first_scheduled = request.first_scheduled_time
                stream.num_cached_tokens = request.num_cached_tokens
            stream.put(
                token, output.text_of(token), logprobs.get(chunk.seq) if logprobs else None, now, wakeups
            )
            if output.stop_found is not None:
                stopped.append(request)
        return stopped

    def close(self, finished: Sequence[Request], now: float) -> None:
        """End the outputs of finished requests."""
        for request in finished:
            output = self._outputs.pop(request.request_id)
            times = output.stream.times
            if times.first_scheduled is None:
                times.first_scheduled = request.first_scheduled_time
            reason = request.finish_reason
            assert reason is not None  # finished requests have one
            output.stream.finish(
                reason,
                self._wakeups,
                now,
                text=output.rest(),
                stop_cause=output.stop_found or request.stop_cause,
                error=request.error,
                embedding=output.embedding(),
            )

    def wake(self) -> None:
        """Wake the readers of everything handed over since the last call."""
        self._wakeups.flush()
