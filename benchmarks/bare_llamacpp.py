"""The plainest loop over llama_decode: what llama.cpp does without any engine around it.

No queue, no scheduler, no block tables, no sampler but the largest logit. `measure_bare` serves a fixed set
of sequences, all of one length, from the first prompt token to the last output. Only benchmarks use it.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.llamacpp.library import load_library
from ..errors import ModelFormatError, WorkerError

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BareSetting:
    """What of llama.cpp's settings makes a difference to its speed."""

    tokens_per_call: int
    """Most prompt tokens of one llama_decode."""
    n_ubatch: int
    """Tokens that llama.cpp computes at once."""
    unified: bool = False
    """One memory for all sequences instead of one for each."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second of all sequences together."""

    prefill: float
    """Prompt tokens until every sequence has its first output."""
    decode: float
    """Outputs while every sequence has one in each step."""


def measure_bare(
    model: Path, prompts: Sequence[Sequence[int]], output_len: int, threads: int, setting: BareSetting
) -> Speeds:
    """Serve `prompts`, which have one length, at once.

    Raises:
        ModelFormatError: llama.cpp does not load the file, or there is no room for the sequences.
        WorkerError: llama_decode failed.
    """
    loop = BareLoop(model, len(prompts), len(prompts[0]) + output_len, threads, setting)
    try:
        loop.warm_up()
        array = np.asarray(prompts, dtype=np.int32)
        started = perf_counter()
        last = loop.prefill(array)
        middle = perf_counter()
        for step in range(output_len - 1):
            last = loop.step(last, array.shape[1] + step)
        ended = perf_counter()
    finally:
        loop.close()
    return Speeds(array.size / (middle - started), len(prompts) * (output_len - 1) / (ended - middle))


class BareLoop:
    """A model, a context with a lane for each of `sequences` sequences, and a batch of arrays.

    Raises:
        ModelFormatError: llama.cpp does not load the file, or there is no room for the sequences.
    """

    def __init__(self, model: Path, sequences: int, length: int, threads: int, setting: BareSetting) -> None:
        self._api: Any = load_library()
        self._setting = setting
        self._sequences = sequences
        parameters = self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(str(model).encode(), parameters)
        if self._model is None:
            raise ModelFormatError(f"{model} cannot be loaded by llama.cpp")
        vocab = self._api.llama_model_get_vocab(self._model)
        self._vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        size = max(setting.tokens_per_call, sequences)
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = sequences * length
        parameters.n_seq_max = sequences
        parameters.kv_unified = setting.unified
        parameters.n_batch = size
        parameters.n_ubatch = setting.n_ubatch
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_AUTO
        parameters.no_perf = True
        self._context = self._api.llama_init_from_model(self._model, parameters)
        if self._context is None:
            self._api.llama_model_free(self._model)
            raise ModelFormatError(f"{model}: no room for {sequences} sequences of {length} tokens")
        self._memory = self._api.llama_get_memory(self._context)
        self._make_batch(size)

    def _make_batch(self, size: int) -> None:
        self._tokens: Ints = np.zeros(size, np.int32)
        self._positions: Ints = np.zeros(size, np.int32)
        self._lanes: Ints = np.zeros(size, np.int32)
        self._counts: Ints = np.ones(size, np.int32)
        self._lists = self._lanes.ctypes.data + self._lanes.itemsize * np.arange(size, dtype=np.uint64)
        self._outputs: NDArray[np.int8] = np.zeros(size, np.int8)
        self._batch = self._api.llama_batch()
        kinds = dict(self._api.llama_batch._fields_)
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._lists),
            ("logits", self._outputs),
        ):
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kinds[name]))

    def warm_up(self) -> None:
        """Let llama.cpp read the weights and set up what it keeps, then forget the tokens."""
        self.prefill(np.zeros((self._sequences, 2), np.int32))
        self.step(np.zeros(self._sequences, np.int32), 2)
        self._api.llama_memory_clear(self._memory, False)

    def prefill(self, prompts: Ints) -> Ints:
        """Compute all prompts [sequences, length]; each one's next token."""
        sequences, length = prompts.shape
        per_call = max(1, self._setting.tokens_per_call // length)
        last = np.zeros(sequences, np.int32)
        for begin in range(0, sequences, per_call):
            group = np.arange(begin, min(begin + per_call, sequences), dtype=np.int32)
            positions = np.tile(np.arange(length, dtype=np.int32), len(group))
            last[group] = self.decode(
                prompts[group].reshape(-1), positions, np.repeat(group, length), positions == length - 1
            )
        return last

    def step(self, tokens: Ints, position: int) -> Ints:
        """One token more of each sequence; the ones after them."""
        count = len(tokens)
        lanes = np.arange(count, dtype=np.int32)
        return self.decode(tokens, np.full(count, position), lanes, np.ones(count, np.bool_))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let the empty lane `target` begin with the first `length` tokens of lane `source`."""
        # Lanes with a memory of their own can only be copied whole, and trimmed afterwards.
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._api.llama_memory_seq_rm(self._memory, target, length, -1)

    def empty(self, lane: int) -> None:
        """Forget a lane's tokens."""
        self._api.llama_memory_seq_rm(self._memory, lane, -1, -1)

    def close(self) -> None:
        """Give model and context back."""
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def decode(self, tokens: Ints, positions: Ints, lanes: Ints, outputs: NDArray[np.bool_]) -> Ints:
        """Compute tokens [n] at their positions in their lanes; the next token after each of the `outputs`.

        Raises:
            WorkerError: llama_decode failed.
        """
        begin, count = 0, len(tokens)
        rows: list[Ints] = []
        while begin < count:
            part = slice(begin, begin + len(self._tokens))
            size = len(tokens[part])
            self._tokens[:size] = tokens[part]
            self._positions[:size] = positions[part]
            self._lanes[:size] = lanes[part]
            self._outputs[:size] = outputs[part]
            self._batch.n_tokens = size
            code = self._api.llama_decode(self._context, self._batch)
            if code:
                raise WorkerError(f"llama_decode returned {code} for {size} tokens")
            wanted = int(outputs[part].sum())
            if wanted:
                pointer = self._api.llama_get_logits(self._context)
                logits = np.ctypeslib.as_array(pointer, (wanted, self._vocab_size))
                rows.append(logits.argmax(-1).astype(np.int32))
            begin += size
        return np.concatenate(rows)
