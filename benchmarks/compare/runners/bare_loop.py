"""The plainest loop over llama_decode: no queue, no block tables, no sampler but the largest logit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....backends.llamacpp.batch_arrays import BatchArrays, Ints
from ....backends.llamacpp.library import load_library
from ....errors import ModelFormatError, WorkerError


@dataclass(frozen=True, slots=True)
class BareSetting:
    """What of llama.cpp's settings makes a difference to its speed."""

    tokens_per_call: int
    """Most prompt tokens of one llama_decode."""
    n_ubatch: int
    """Tokens that llama.cpp computes at once."""
    unified: bool = False
    """One memory for all sequences instead of one for each."""


class BareLoop:
    """A model, a context with a lane for each of `sequences` sequences, and a batch of arrays.

    Raises:
        ModelFormatError: llama.cpp does not load the file, or there is no room for the sequences.
    """

    def __init__(self, model: Path, sequences: int, length: int, threads: int, setting: BareSetting) -> None:
        self._api: Any = load_library()
        parameters = self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(str(model).encode(), parameters)
        if self._model is None:
            raise ModelFormatError(f"{model} cannot be loaded by llama.cpp")
        vocab = self._api.llama_model_get_vocab(self._model)
        self._vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        self._size = max(setting.tokens_per_call, sequences)
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = sequences * length
        parameters.n_seq_max = sequences
        parameters.kv_unified = setting.unified
        parameters.n_batch = self._size
        parameters.n_ubatch = setting.n_ubatch
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_AUTO
        parameters.no_perf = True
        self._context = self._api.llama_init_from_model(self._model, parameters)
        if self._context is None:
            self._api.llama_model_free(self._model)
            raise ModelFormatError(f"{model}: no room for {sequences} sequences of {length} tokens")
        self._memory = self._api.llama_get_memory(self._context)
        self._arrays = BatchArrays(self._api, self._size)

    def decode(self, tokens: Ints, positions: Ints, lanes: Ints, outputs: NDArray[np.bool_]) -> Ints:
        """Compute tokens [n] at their positions in their lanes; the next token after each of the `outputs`.

        Raises:
            WorkerError: llama_decode failed.
        """
        rows: list[Ints] = []
        for begin in range(0, len(tokens), self._size):
            part = slice(begin, begin + self._size)
            wanted = np.flatnonzero(outputs[part])
            batch = self._arrays.fill(tokens[part], positions[part], lanes[part], wanted)
            code = self._api.llama_decode(self._context, batch)
            if code:
                raise WorkerError(f"llama_decode returned {code} for {len(tokens[part])} tokens")
            if len(wanted):
                pointer = self._api.llama_get_logits(self._context)
                logits = np.ctypeslib.as_array(pointer, (len(wanted), self._vocab_size))
                rows.append(logits.argmax(-1).astype(np.int32))
        return np.concatenate(rows)

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
