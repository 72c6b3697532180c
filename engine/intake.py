"""Intake: where requests enter a running model; they are checked here, all before anything is queued."""

from collections.abc import Callable, Sequence
from itertools import count
from time import monotonic

import msgspec

from ..backends.worker import ModelInfo, Tokenizer, WorkerSpec
from ..errors import InvalidArgument, LimitExceeded, NotSupported
from ..kvcache import root_digest
from ..scheduler import Pooling, Request, SamplingParams
from .adapters import AdapterTable
from .checks import check_kind, check_lengths, check_prompt, check_token_ids
from .config import ModelConfig
from .embeddings import PoolingParams
from .output_stream import OutputStream
from .outputs import OutputState
from .request_options import RequestOptions
from .step_loop import StepLoop

Prompt = str | Sequence[int]
"""A text, or token ids."""


class RequestHandle:
    """One request: its samples' output streams, and what an engine needs to stop it."""

    __slots__ = ("model", "released", "request_id", "requests", "streams")

    def __init__(self, model: str, samples: Sequence[OutputState]) -> None:
        self.model = model
        self.requests = tuple(output.request for output in samples)
        self.request_id = self.requests[0].request_id
        self.streams = tuple(output.stream for output in samples)
        self.released = False

    @property
    def stream(self) -> OutputStream:
        """The first sample's output stream."""
        return self.streams[0]

    @property
    def finished(self) -> bool:
        """True when every sample has ended."""
        return all(stream.finish_reason is not None for stream in self.streams)


Started = tuple[RequestHandle, OutputStream]
"""A request that has been queued, and the output stream of its (first) sample."""


class Intake:
    """Makes Requests and the states of their outputs, and submits them to a step loop; from any thread."""

    _request_ids = count(1)

    def __init__(
        self,
        model: str,
        info: ModelInfo,
        spec: WorkerSpec,
        loop: StepLoop,
        adapters: AdapterTable,
        tokenizer: Callable[[], Tokenizer],
        *,
        max_length: int,
        config: ModelConfig,
    ) -> None:
        """`tokenizer` raises where the model has none; `config` holds where a request says nothing."""
        self.adapters = adapters
        self._model = model
        self._info = info
        self._spec = spec
        self._loop = loop
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._config = config

    def token_ids(self, prompt: Prompt) -> Sequence[int]:
        """Token ids of a text; token ids as they are. Raises ModelFormatError without a tokenizer."""
        return self._tokenizer().encode(prompt) if isinstance(prompt, str) else prompt

    def start_requests(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, options: RequestOptions
    ) -> list[Started]:
        """Check requests for one prompt each and queue them all, or none. Never blocks.

        Raises:
            InvalidArgument, LimitExceeded, QueueFull
            AdapterNotFound: the adapter is not loaded.
            NotSupported: the model gives embeddings only.
        """
        if not self._spec.generates:
            raise NotSupported(f"model {self._model!r} gives embeddings and generates no text")
        if params.stop and not options.detokenize:
            raise InvalidArgument(
                "stop", params.stop, "nothing with detokenize=False: there is no text to search"
            )
        check_token_ids(params, self._info.vocab_size)
        with self.adapters.using(options.adapter) as cache_name:
            return self._submit([self._samples(prompt, params, options, cache_name) for prompt in prompts])

    def start_embeddings(
        self, prompts: Sequence[Sequence[int]], params: PoolingParams, options: RequestOptions
    ) -> list[Started]:
        """Check requests for an embedding of one prompt each and queue them all, or none. Never blocks.

        Raises:
            InvalidArgument, LimitExceeded, QueueFull
            AdapterNotFound: the adapter is not loaded.
            NotSupported: the model gives no embeddings.
        """
        embedding = self._spec.embedding
        if embedding is None:
            raise NotSupported(f"model {self._model!r} gives no embeddings")
        params.check_size(self._model, embedding.size)
        params = params.resolve(embedding)
        with self.adapters.using(options.adapter) as cache_name:
            return self._submit(
                [[self._embedding(prompt, params, options, cache_name)] for prompt in prompts]
            )

    def _samples(
        self, prompt: Sequence[int], params: SamplingParams, options: RequestOptions, cache_name: str
    ) -> list[OutputState]:
        # Its length first: what is far too long need not be looked at.
        check_kind(prompt)
        max_output = check_lengths(
            self._model, len(prompt), params, self._max_length, self._config.default_max_new_tokens
        )
        token_ids = check_prompt(prompt, self._info.vocab_size)
        eos = self._info.eos_token_ids if params.eos_token_ids is None else params.eos_token_ids
        outputs: list[OutputState] = []
        for sample in range(params.n):
            if sample == 1:
                # Only the first sample reports on the prompt they share.
                params = msgspec.structs.replace(params, prompt_logprobs=None)
            request = self._request(
                token_ids,
                params,
                options,
                cache_name,
                seed=options.seed_of_sample(params, sample),
                max_tokens=len(token_ids) + max_output,
                eos_token_ids=eos,
                leader=outputs[0].request if outputs else None,
            )
            decoder = None
            if options.detokenize:
                decoder = self._tokenizer().stream(skip_special_tokens=params.skip_special_tokens)
            outputs.append(OutputState(request, _stream_of(request), decoder))
        return outputs

    def _embedding(
        self, prompt: Sequence[int], params: PoolingParams, options: RequestOptions, cache_name: str
    ) -> OutputState:
        check_kind(prompt)
        if len(prompt) > self._max_length:
            raise LimitExceeded(
                f"the prompt has {len(prompt)} tokens; {self._model!r} takes up to {self._max_length}",
                "prompt",
            )
        token_ids = check_prompt(prompt, self._info.vocab_size)
        request = self._request(
            token_ids,
            SamplingParams(),
            options,
            cache_name,
            seed=0,
            max_tokens=len(token_ids),
            pooling=params.pooling,
        )
        return OutputState(request, _stream_of(request), None, params)

    def _request(
        self,
        token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions,
        cache_name: str,
        *,
        seed: int,
        max_tokens: int,
        eos_token_ids: tuple[int, ...] = (),
        leader: Request | None = None,
        pooling: Pooling | None = None,
    ) -> Request:
        now = monotonic()
        salt = options.tenant if options.cache_salt is None else options.cache_salt
        queue_timeout = self._config.queue_timeout if options.queue_timeout is None else options.queue_timeout
        return Request(
            next(self._request_ids),
            token_ids,
            params,
            seed=seed,
            max_tokens=max_tokens,
            cache_root=root_digest(salt=salt, adapter=cache_name),
            eos_token_ids=eos_token_ids,
            priority=options.priority,
            tenant=options.tenant,
            arrival_time=now,
            deadline=None if options.deadline is None else now + options.deadline,
            queue_deadline=None if queue_timeout is None else now + queue_timeout,
            leader=leader,
            pooling=pooling,
            adapter=options.adapter,
        )

    def _submit(self, requests: Sequence[Sequence[OutputState]]) -> list[Started]:
        if not requests:
            return []
        self._loop.submit([output for samples in requests for output in samples])
        handles = [RequestHandle(self._model, samples) for samples in requests]
        return [(handle, handle.stream) for handle in handles]


def _stream_of(request: Request) -> OutputStream:
    return OutputStream(num_prompt_tokens=request.num_prompt_tokens, arrival=request.arrival_time)
