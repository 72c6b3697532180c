"""llama.cpp itself, one sequence at a time: what exports and workers are compared with."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from millstream.backends.llamacpp.library import load_library
from millstream.backends.machine.hardware import cpu_features

llama_cpp = load_library()  # its log goes to Python's logging, not to the terminal

F32 = 0
"""ggml's number of the type."""
NEAR_TIE = 0.05
"""Logits closer than this may change places. Builds of llama.cpp for other CPUs, and other batches, were seen
to move a difference of two logits, whose spread is 3, by up to 0.025."""


class PlainLlama:
    """A model on one thread with a cache in f32, so that it can be compared with float32 references.

    With `as_served` its cache, attention and weights are as workers have them.
    """

    def __init__(
        self, path: Path, n_ctx: int = 256, vocab_only: bool = False, as_served: bool = False
    ) -> None:
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        model.vocab_only = vocab_only
        # Repacked weights and kernels for special instructions are not what is looked at here.
        model.use_extra_bufts = as_served and "amx_int8" not in cpu_features()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context = None
        if not vocab_only:
            context = llama_cpp.llama_context_default_params()
            context.n_ctx = context.n_batch = context.n_ubatch = n_ctx
            context.n_threads = context.n_threads_batch = 1
            if not as_served:
                context.type_k = context.type_v = F32
                context.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            self._context = llama_cpp.llama_init_from_model(self._model, context)
            assert self._context

    def close(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def adapt(self, path: Path, scale: float = 1.0) -> None:
        """Run under an adapter from now on."""
        adapter = llama_cpp.llama_adapter_lora_init(self._model, str(path).encode())
        assert adapter, f"llama.cpp cannot load {path}"
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(scale)
        assert llama_cpp.llama_set_adapters_lora(self._context, handles, 1, scales) == 0

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, its special tokens read as such, with the model's own begin of sequence."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (4 * len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        assert count >= 0
        return list(ids[:count])

    def logits(self, tokens: list[int], start: int = 0) -> np.ndarray:
        """[tokens, vocabulary] after each token; `start` is the position of the first."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(self._context, batch) == 0
        shape = (len(tokens), self.vocab_size)
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape).copy()
        llama_cpp.llama_batch_free(batch)
        return found

    def greedy(self, prompt: list[int], count: int, stop: tuple[int, ...] = ()) -> list[int]:
        """The next `count` tokens of a new sequence, or those up to one of `stop`, which is the last then."""
        self.clear()
        tokens: list[int] = []
        logits = self.logits(prompt)
        while True:
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] in stop or len(tokens) == count:
                return tokens
            logits = self.logits(tokens[-1:], len(prompt) + len(tokens) - 1)

    def follows(self, prompt: list[int], tokens: list[int]) -> bool:
        """Whether each of `tokens` is the most likely one after those before it, or nearly as likely."""
        self.clear()
        rows = self.logits(prompt + tokens[:-1])[-len(tokens) :]
        return bool((rows[range(len(tokens)), tokens] >= rows.max(1) - NEAR_TIE).all())

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)


@contextmanager
def plain_llama(
    path: Path, n_ctx: int = 256, vocab_only: bool = False, as_served: bool = False
) -> Iterator[PlainLlama]:
    model = PlainLlama(path, n_ctx, vocab_only, as_served)
    try:
        yield model
    finally:
        model.close()
