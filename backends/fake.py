"""A worker without weights: deterministic tokens from a paged cache of digests, for tests and measurements.

Each slot of the cache holds a digest of its token, its position and the slot before it, as real keys and
values depend on everything before them. The next token is a function of the last slot, so a wrong block
table, a block written over too early or a wrong position changes tokens, as it would in a real model.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..errors import LimitExceeded, WorkerError
from ..scheduler.batch import Batch, Chunk, Pooling, SequenceStart, StepResult, TokenLogprobs, Wants
from .answers.pooling import Pooler
from .machine.hardware import MemoryLimit
from .text.chat_template import ChatTemplates
from .worker import (
    Adapter,
    EmbeddingSpec,
    MemoryNeeds,
    ModelInfo,
    Progress,
    TextStream,
    Tokenizer,
    WorkerConfig,
    WorkerSpec,
    require_plain_cache,
    require_unquantised,
)

_MASK = (1 << 61) - 1
_EMPTY = -1
FAKE_EMBEDDING_SIZE = 6
FAKE_ADAPTER_RANK = 8


def _mix(state: int, value: int) -> int:
    """One step of a multiplicative hash over the Mersenne prime 2**61 - 1; never the empty slot's value."""
    return ((state ^ value) * 0x9E3779B97F4A7C15 + 0x632BE5AB) % _MASK


class FakeWorker:
    """Implements the Worker protocol over integers; see the module's docstring."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        step_time: float = 0.0,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        """`step_time` is slept in each step, in seconds; `on_batch` sees each batch first and may raise."""
        self._spec = spec
        self._step_time = step_time
        self._on_batch = on_batch
        self._slots = [_EMPTY] * (spec.num_blocks * spec.block_size)
        self._sequences: dict[int, SequenceStart] = {}
        self._pooler = Pooler()
        self._adapters: set[str] = set()
        self._closed = False

    @property
    def spec(self) -> WorkerSpec:
        """Constant from creation to end."""
        return self._spec

    def execute(self, batch: Batch) -> StepResult:
        """Write every token's slot first, as a packed layer does, then read the last slot of each chunk."""
        if self._closed:
            raise WorkerError("the worker is closed")
        if self._on_batch is not None:
            try:
                self._on_batch(batch)
            except Exception as error:
                raise WorkerError(f"the fake worker was told to fail: {error}") from error
        for seq in batch.retired:
            self._sequences.pop(seq, None)
            self._pooler.retire(seq)
        for start in batch.started:
            self._sequences[start.seq] = start
            self._pooler.start(start)
        self._check(batch)
        if self._step_time:
            time.sleep(self._step_time)
        slots = self._slots
        size = self._spec.block_size
        token_ids: list[int | None] = []
        logprobs: dict[int, TokenLogprobs] = {}
        prompt_logprobs: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        embeddings: dict[int, tuple[float, ...]] = {}
        for chunk in batch.chunks:
            blocks, position = chunk.blocks, chunk.start
            start = self._sequences[chunk.seq]
            state = crc32(start.adapter.encode()) if start.adapter is not None else 0
            if position:
                previous = position - 1
                state = slots[blocks[previous // size] * size + previous % size]
                if state == _EMPTY:
                    raise WorkerError(f"sequence {chunk.seq} reads position {previous}, never computed")
            for token in chunk.tokens:
                state = _mix(state, token + position)
                slots[blocks[position // size] * size + position % size] = state
                position += 1
            if start.params.prompt_logprobs is not None and chunk.start < start.num_prompt_tokens:
                prompt_logprobs[chunk.seq] = self._prompt_logprobs(start, chunk.start, position)
            if start.pooling is not None:
                self._pooler.add(chunk.seq, self._hidden_states(chunk))
            if chunk.wants is not Wants.TOKEN:
                token_ids.append(None)
                if chunk.wants is Wants.EMBEDDING:
                    embeddings[chunk.seq] = self._pooler.finish(chunk.seq, position)
                continue
            token = self._next_token(start, state, position)
            token_ids.append(token)
            if start.params.logprobs:
                logprobs[chunk.seq] = TokenLogprobs(-0.5, ((token, -0.5),) * bool(start.params.top_logprobs))
        return StepResult(token_ids, logprobs, prompt_logprobs, embeddings)

    def load_adapter(self, adapter: Adapter, max_rank: int | None) -> None:
        """Any name is an adapter, of rank FAKE_ADAPTER_RANK; the file is not looked at."""
        if max_rank is not None and max_rank < FAKE_ADAPTER_RANK:
            raise LimitExceeded(
                f"adapter {adapter.name!r} has rank {FAKE_ADAPTER_RANK}; at most {max_rank} is allowed"
            )
        self._adapters.add(adapter.name)

    def unload_adapter(self, name: str) -> None:
        """See `Worker`."""
        self._adapters.remove(name)

    def close(self) -> None:
        """Forget all slots."""
        self._slots = []
        self._closed = True

    def _check(self, batch: Batch) -> None:
        """Raise WorkerError where the batch asks for what the spec says this worker cannot do."""
        starts = [self._sequences[chunk.seq] for chunk in batch.chunks]
        adapters = {start.adapter for start in starts}
        if unknown := adapters - self._adapters - {None}:
            raise WorkerError(f"adapters {unknown} are not loaded")
        if len(adapters) > 1 and not self._spec.mixes_adapters:
            raise WorkerError(f"adapters {adapters} in one batch")
        for chunk, start in zip(batch.chunks, starts, strict=True):
            if not self._spec.chunks_prompts and len(chunk.tokens) != len(start.token_ids):
                raise WorkerError(f"sequence {chunk.seq} comes in chunks")

    def _hidden_states(self, chunk: Chunk) -> NDArray[np.float32]:
        """[tokens, FAKE_EMBEDDING_SIZE] made of the digests in the slots of a chunk."""
        size = self._spec.block_size
        positions = range(chunk.start, chunk.start + len(chunk.tokens))
        states = [self._slots[chunk.blocks[p // size] * size + p % size] for p in positions]
        shifts = np.arange(FAKE_EMBEDDING_SIZE) * 8
        return ((np.array(states)[:, None] >> shifts & 255) / 256).astype(np.float32)

    def _next_token(self, start: SequenceStart, state: int, position: int) -> int:
        if start.params.temperature > 0:
            state = _mix(state, start.seed * 31 + position)
        token = state % self._spec.vocab_size
        if token in start.eos_token_ids and position - start.num_prompt_tokens < start.min_output_tokens:
            token = (token + 1) % self._spec.vocab_size
        return token

    @staticmethod
    def _prompt_logprobs(start: SequenceStart, first: int, end: int) -> tuple[TokenLogprobs | None, ...]:
        end = min(end, start.num_prompt_tokens)
        return tuple(None if position == 0 else TokenLogprobs(-0.5, ()) for position in range(first, end))


class CharacterTokenizer:
    """Token i is the i-th printable character from the space on, over and over; implements Tokenizer."""

    chat_template: str | None = None
    chat_template_names: tuple[str, ...] = ()

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...] = ()) -> None:
        self._vocab_size = vocab_size
        self._templates = ChatTemplates({}, {})
        self.eos_token_ids = eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """One token a character; there are no special tokens to add."""
        return [ord(character) % self._vocab_size for character in text]

    def fewest_tokens(self, text: str) -> int:
        """The number itself."""
        return len(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """One character a token; end-of-sequence ids are special."""
        return "".join(
            chr(32 + token % 95)
            for token in token_ids
            if not (skip_special_tokens and token in self.eos_token_ids)
        )

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """Decodes each token by itself."""
        return _CharacterStream(self, skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """By a template that the caller brings: there is no other."""
        return self._templates.render(messages, add_generation_prompt=add_generation_prompt, **kwargs)


class _CharacterStream:
    def __init__(self, tokenizer: CharacterTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens

    def push(self, token_id: int) -> str:
        return self._tokenizer.decode((token_id,), skip_special_tokens=self._skip_special_tokens)

    def flush(self) -> str:
        return ""


class FakeBackend:
    """Makes FakeWorkers, under any model name; implements the Backend protocol."""

    name = "fake"

    def __init__(
        self,
        *,
        vocab_size: int = 1000,
        max_length: int = 4096,
        eos_token_ids: tuple[int, ...] = (),
        step_time: float = 0.0,
        on_batch: Callable[[Batch], None] | None = None,
        tokenizer: Tokenizer | None = None,
        shares_prefixes: bool = True,
        shares_within_step: bool = True,
        generates: bool = True,
        chunks_prompts: bool = True,
        mixes_adapters: bool = True,
    ) -> None:
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._eos_token_ids = eos_token_ids
        self._step_time = step_time
        self._on_batch = on_batch
        self._tokenizer = tokenizer
        self._shares_prefixes = shares_prefixes
        self._shares_within_step = shares_within_step
        self._generates = generates
        self._chunks_prompts = chunks_prompts
        self._mixes_adapters = mixes_adapters

    def inspect(self, name: str, path: Path) -> ModelInfo:
        """What the constructor was told."""
        return ModelInfo(
            name=name,
            path=path,
            backend=self.name,
            architecture="Fake",
            num_parameters=0,
            vocab_size=self._vocab_size,
            max_length=self._max_length,
            eos_token_ids=self._eos_token_ids,
            generation_defaults={},
        )

    def resolve(self, info: ModelInfo, *, device: str, dtype: str, threads: int) -> tuple[str, str, int]:
        """There is one device, one dtype and one thread."""
        return "cpu", "int64", 1

    def memory_needs(self, info: ModelInfo, config: WorkerConfig) -> MemoryNeeds:
        """A Python list of ints."""
        require_unquantised(config, "a fake model has no weights")
        require_plain_cache(config, "a fake model has no keys and values")
        return MemoryNeeds(weights=0, activations=0, kv_per_block=40 * config.block_size)

    def memory_limit(self, device: str) -> MemoryLimit:
        """A limit that nothing reaches."""
        return MemoryLimit(limit_bytes=1 << 40, used_bytes=0, source="fake")

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> FakeWorker:
        """A worker with this configuration's numbers."""
        progress("weights", 1.0)
        spec = WorkerSpec(
            vocab_size=self._vocab_size,
            max_length=config.max_length,
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            shares_prefixes=self._shares_prefixes,
            shares_within_step=self._shares_within_step,
            generates=self._generates,
            embedding=EmbeddingSpec(size=FAKE_EMBEDDING_SIZE, pooling=Pooling.LAST),
            chunks_prompts=self._chunks_prompts,
            takes_adapters=True,
            mixes_adapters=self._mixes_adapters,
            dtype="int64",
        )
        return FakeWorker(spec, step_time=self._step_time, on_batch=self._on_batch)

    def load_tokenizer(self, info: ModelInfo) -> Tokenizer:
        """The one given, or one token a character."""
        return self._tokenizer or CharacterTokenizer(self._vocab_size, self._eos_token_ids)
