"""LlamaContext: one model and its memory inside llama.cpp."""

import ctypes
import logging
import os
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InsufficientMemory, ModelFormatError, NotSupported, WorkerError
from ..gguf.model_file import GGUFModel
from ..machine.hardware import cpu_features
from ..worker import Adapter, ModelInfo, Progress, WorkerConfig
from .batch_arrays import BatchArrays
from .fixed_shapes import TILE
from .layout import MAX_CELLS, MIN_OUTPUT_ROWS, Layout, choose_layout, layouts_up_to
from .library import error_lines, load_library
from .memory import MAX_UBATCH, cache_cost
from .sequence_map import Cells

Rows = NDArray[np.float32]
_log = logging.getLogger("millstream.llamacpp")


class Context(Cells, Protocol):
    """What a worker needs of a LlamaContext."""

    layout: Layout
    """What `grow` leads to."""
    lane_size: int
    """Most positions that one lane may hold now."""
    max_tokens: int
    """Most tokens of one `decode`."""
    max_rows: int
    """Most rows that may be wanted of one `decode`, and most tokens of one that gives hidden states."""
    always_states: bool
    """`decode` gives hidden states alone."""
    can_cut: bool
    """A lane may lose its last positions and go on before them."""

    def decode(
        self, tokens: list[int], positions: list[int], lanes: list[int], wanted: list[int], states: bool
    ) -> int:
        """Compute tokens; keep the rows of those at the places `wanted`, ascending. llama_decode's code.

        The rows are logits or, with `states`, hidden states.
        """

    def grow(self) -> bool:
        """Make more cells, and keep all content; False where there are as many as there may be."""

    def use_threads(self, count: int) -> None:
        """How many threads `decode` takes from now on."""

    def rows(self) -> Rows:
        """The rows that were wanted of the last `decode`, [rows, width]; they hold until the next one."""

    def use_adapter(self, name: str | None) -> None:
        """What is computed from now on is computed under that adapter; None: under none."""

    def load_adapter(self, adapter: Adapter) -> None:
        """Read an adapter whose file has been checked.

        Raises:
            ModelFormatError: llama.cpp does not load it; says why.
        """

    def unload_adapter(self, name: str) -> None:
        """Free an adapter."""

    def clear(self) -> None:
        """Empty every lane."""

    def close(self) -> None:
        """Free everything; a second call does nothing."""


class LlamaContext:
    """Implements `Context` with llama.cpp."""

    def __init__(self, file: GGUFModel, info: ModelInfo, config: WorkerConfig, progress: Progress) -> None:
        """Read the weights, make the memory.

        Raises:
            ModelFormatError: llama.cpp does not load the file; says why.
            InsufficientMemory: there is no room for the memory.
            NotSupported: llama.cpp is not installed, or keeps no cache of this causal model.
        """
        self._api = load_library()
        self.always_states = not file.is_causal
        self._file, self._info, self._config = file, info, config
        cost = cache_cost(file)
        self.layout = choose_layout(config, self._api.llama_max_parallel_sequences(), file.is_causal, cost)
        first, *self._larger = layouts_up_to(self.layout, config, cost)
        self._adapters: dict[str, tuple[Any, float]] = {}
        self._adapter: str | None = None
        self._threads = config.threads
        self._states = self.always_states
        self._context: Any = None
        self._model = self._load(info, config, progress)
        try:
            vocab_size: int = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
            if vocab_size != info.vocab_size:
                raise ModelFormatError(
                    f"{info.path} has {vocab_size} tokens; {info.vocab_size} were found in its header"
                )
            self._vocab_size = vocab_size
            self.embedding_size: int = self._api.llama_model_n_embd_out(self._model)
            self._use(self._make_context(first), first)
            if self._memory is None and file.is_causal:
                raise NotSupported(
                    f"llama.cpp keeps no cache for the architecture {info.architecture}, and so writes no "
                    "texts with it"
                )
            self.max_tokens: int = self._api.llama_n_batch(self._context)
            rows = max(self.layout.lanes, MIN_OUTPUT_ROWS)
            self.max_rows = self.max_tokens if self.always_states else rows
            self._arrays = BatchArrays(self._api, self.max_tokens)
            # A window that slides lets other sequences take cells which a prefix would need again.
            slides = self._api.llama_model_n_swa(self._model) > 0
            self.can_cut = file.is_causal and self._loses_parts() and (self.layout.streams or not slides)
        except BaseException:
            self.close()
            raise

    def decode(
        self, tokens: list[int], positions: list[int], lanes: list[int], wanted: list[int], states: bool
    ) -> int:
        """See `Context`. llama.cpp gives hidden states of all tokens of a call, and applies the head to them.

        Which of the two it gives out is a switch; throwing it costs nothing but the next graph's reuse.
        """
        if states != self._states:
            self._api.llama_set_embeddings(self._context, states)
            self._states = states
        self._wanted, self._count = wanted, len(tokens)
        given = list(range(len(tokens))) if states else wanted
        return int(self._api.llama_decode(self._context, self._arrays.fill(tokens, positions, lanes, given)))

    def grow(self) -> bool:
        """See `Context`. For this moment there are both memories, and the content once more."""
        if not self._larger:
            return False
        api, (layout, *rest) = self._api, self._larger
        state: NDArray[np.uint8] = np.empty(api.llama_state_get_size(self._context), np.uint8)
        content = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        api.llama_state_get_data(self._context, content, state.size)
        try:
            larger = self._make_context(layout)
        except InsufficientMemory as error:
            _log.warning("the cache stays as it is: %s", error)
            self._larger = []
            return False
        if api.llama_state_set_data(larger, content, state.size) != state.size:
            api.llama_free(larger)
            raise WorkerError(f"llama.cpp could not move a cache of {state.size} bytes into a larger one")
        api.llama_free(self._context)
        adapter = self._adapter
        self._use(larger, layout)
        self.use_adapter(adapter)
        self._larger = rest
        return True

    def use_threads(self, count: int) -> None:
        """See `Context`."""
        if count != self._threads:
            self._api.llama_set_n_threads(self._context, count, count)
            self._threads = count

    def rows(self) -> Rows:
        """See `Context`."""
        if not self._states:
            logits = self._api.llama_get_logits(self._context)
            return np.ctypeslib.as_array(logits, (len(self._wanted), self._vocab_size))
        states = self._api.llama_get_embeddings(self._context)
        all_rows = np.ctypeslib.as_array(states, (self._count, self.embedding_size))
        return all_rows if len(self._wanted) == self._count else all_rows[self._wanted]

    def use_adapter(self, name: str | None) -> None:
        """See `Context`. llama.cpp lays out its buffers anew, so a change costs some milliseconds."""
        if name == self._adapter:
            return
        chosen = [] if name is None else [self._adapters[name]]
        handles = (self._api.llama_adapter_lora_p_ctypes * len(chosen))(*(handle for handle, _ in chosen))
        scales = (ctypes.c_float * len(chosen))(*(scale for _, scale in chosen))
        self._api.llama_set_adapters_lora(self._context, handles, len(chosen), scales)
        self._adapter = name

    def load_adapter(self, adapter: Adapter) -> None:
        """See `Context`."""
        with error_lines() as lines:
            handle = self._api.llama_adapter_lora_init(self._model, os.fsencode(adapter.path))
        if not handle:
            raise ModelFormatError(f"{adapter.path} cannot be loaded by llama.cpp: {_reason(lines)}")
        self._adapters[adapter.name] = handle, adapter.scale

    def unload_adapter(self, name: str) -> None:
        """See `Context`."""
        if self._adapter == name:
            self.use_adapter(None)  # the context would go on reading it
        handle, _ = self._adapters.pop(name)
        self._api.llama_adapter_lora_free(handle)

    def copy(self, source: int, target: int, end: int) -> None:
        """See `Cells`. Between streams only the whole can be copied, which the next `decode` does first."""
        if self.layout.streams:
            self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.remove(target, end)
        else:
            self._api.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def remove(self, lane: int, begin: int) -> None:
        """See `Cells`."""
        self._api.llama_memory_seq_rm(self._memory, lane, begin, -1)

    def clear(self) -> None:
        """See `Context`."""
        self._api.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """See `Context`. Adapters go with the model that they were loaded for."""
        self._adapters.clear()
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context is not None:
            self._api.llama_free(context)
        if model is not None:
            self._api.llama_model_free(model)

    def _load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> Any:
        api = self._api
        parameters = api.llama_model_default_params()
        parameters.load_mode = api.LLAMA_LOAD_MODE_MMAP
        parameters.n_gpu_layers = 0 if config.device == "cpu" else -1
        # Built by GCC 12.2, llama.cpp's AMX kernels for quantised weights end the process (SIGILL): the
        # compiler drops the stores that set the tiles up. Which compiler built the library cannot be asked,
        # so where the CPU would choose those kernels, weights stay in the layout that needs none.
        parameters.use_extra_bufts = "amx_int8" not in cpu_features()
        no_devices = (ctypes.c_void_p * 1)(None)
        if config.device == "cpu":
            parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)

        def report(share: float, _: Any) -> bool:
            progress("weights", share)
            return True

        parameters.progress_callback = callback = api.llama_progress_callback(report)
        with error_lines() as lines:
            model = api.llama_model_load_from_file(str(info.path).encode(), parameters)
        del callback  # lived as long as llama.cpp could call it
        if model is None:
            raise ModelFormatError(f"{info.path} cannot be loaded by llama.cpp: {_reason(lines)}")
        return model

    def _use(self, context: Any, layout: Layout) -> None:
        """Compute with this new context from now on."""
        self._context = context
        self._memory = self._api.llama_get_memory(context)
        self.lane_size = layout.lane_size
        self._adapter = None
        self._states = self.always_states
        self._threads = self._config.threads

    def _make_context(self, layout: Layout) -> Any:
        file, info, config = self._file, self._info, self._config
        rows = max(layout.lanes, MIN_OUTPUT_ROWS)
        tokens = max(TILE if config.batch_invariant else 2, config.max_num_batched_tokens)
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = layout.cells
        parameters.n_seq_max = layout.lanes
        parameters.kv_unified = not layout.streams
        if file.pooling is not None:
            parameters.pooling_type = self._api.LLAMA_POOLING_TYPE_NONE
        if self.always_states:
            parameters.embeddings = True
            # Every token of a call gives a row, and llama.cpp ends the process where there is no room for it.
            rows = max(tokens, rows)
        parameters.n_batch = tokens
        parameters.n_ubatch = min(MAX_UBATCH, tokens) if file.is_causal else tokens
        parameters.n_outputs_max = rows
        parameters.n_threads = parameters.n_threads_batch = config.threads
        parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_AUTO
        parameters.type_k = parameters.type_v = self._api.GGML_TYPE_F16
        parameters.swa_full = True  # a smaller cache for windows forgets what prefixes need
        parameters.offload_kqv = parameters.op_offload = config.device != "cpu"
        parameters.no_perf = True
        context, lines = None, [f"it counts at most {MAX_CELLS} tokens"]
        if layout.cells <= MAX_CELLS:
            with error_lines() as lines:
                context = self._api.llama_init_from_model(self._model, parameters)
        if context is None:
            raise InsufficientMemory(
                f"llama.cpp could not set up {layout.lanes} sequences with {layout.cells} tokens in all for "
                f"{info.name}: {_reason(lines)}; a smaller max_length, max_num_seqs or num_blocks takes less"
            )
        return context

    def _loses_parts(self) -> bool:
        """Whether the second of two tokens can be forgotten alone; leaves the memory empty."""
        api = self._api
        fixed = api.llama_model_is_recurrent(self._model) or api.llama_model_is_hybrid(self._model)
        if fixed or self.decode([0, 0], [0, 1], [0, 0], [], self._states) != 0:
            return False
        can = bool(api.llama_memory_seq_rm(self._memory, 0, 1, -1))
        self.clear()
        return can


def _reason(lines: list[str]) -> str:
    """The first error that llama.cpp logged, on one line."""
    return " ".join(lines[0].split()) if lines else "no reason given"
