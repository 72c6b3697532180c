"""AsEngine: the verbs that DashInfer's native module has, and how errors become status codes."""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import msgspec

from ..backends.worker import Tokenizer
from ..engine import Engine as MillstreamEngine
from ..errors import LimitExceeded, MillstreamError
from ..version import __version__
from .enums import AsStatus
from .model_config import AsModelConfig, engine_config
from .runtime_config import AsModelRuntimeConfigBuilder
from .serialized import read_graph, source_of
from .statistics import AsEngineStat, AsFileInfo
from .status import status_of

logger = logging.getLogger(__name__)


class AsEngine:
    """Models under DashInfer's verbs. Errors are answered as status codes, and kept as `last_error`."""

    def __init__(self) -> None:
        self._engine = MillstreamEngine()
        self._thread = threading.local()
        self._lora_max_num: dict[str, int] = {}
        self._folders: list[TemporaryDirectory[str]] = []
        logger.info("AllSpark verbs of Millstream %s", self.get_version_full())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all requests and release every model. A second call does nothing."""
        self._engine.close()
        while self._folders:
            self._folders.pop().cleanup()

    @property
    def last_error(self) -> MillstreamError | None:
        """Why this thread's last verb was refused; None when it was not. Its text names what is allowed."""
        return getattr(self._thread, "error", None)

    # Looking

    def get_version_full(self) -> str:
        """Version of Millstream."""
        return f"{__version__}/(Millstream)"

    def get_rank_id(self) -> int:
        """0: this process is the one that hands out results."""
        return 0

    def is_allspark_work_as_service(self) -> bool:
        """False: there is no daemon."""
        return False

    def get_as_engine_stat(self, model_name: str) -> AsEngineStat:
        """State and counters of a model.

        Raises:
            ModelNotFound
        """
        return AsEngineStat.of(self._engine.stats(model_name))

    def get_model_info(self, model_name: str) -> str:
        """What the model's files say and what it takes of the memory, as text.

        Raises:
            ModelNotFound
        """
        info = self._engine.model_info(model_name)
        lines = [f"{field}: {getattr(info, field)}" for field in info.__struct_fields__]
        return "\n".join([*lines, f"memory: {self._engine.memory_plan(model_name).describe()}"])

    def get_op_profiling_info(self, model_name: str) -> str:
        """Figures of the steps since the model was started, as text; single operators are not timed.

        Raises:
            ModelNotFound
        """
        stats = msgspec.structs.asdict(self._engine.stats(model_name))
        fields = ("steps", "mean_batch_size", "prompt_tokens_per_second", "generated_tokens_per_second")
        return "\n".join(f"{field}: {stats[field]}" for field in fields)

    def get_file_information(
        self, asgraph: str | os.PathLike[str], asparam: str | os.PathLike[str]
    ) -> AsFileInfo:
        """Which version wrote a serialised model; the graph file speaks for both paths.

        Raises:
            ModelNotFound, ModelFormatError: see `serialized.read_graph`.
            InvalidArgument: the paths are not of one model.
        """
        source_of(os.fspath(asgraph), os.fspath(asparam))
        written_by = read_graph(asgraph).version
        return AsFileInfo(written_by, written_by, __version__)

    def tokenizer(self, model_name: str) -> Tokenizer:
        """The engine's own tokenizer of an installed model (Millstream's).

        Raises:
            ModelNotFound
        """
        return self._engine.tokenizer(model_name)

    # Device memory

    def unload_device_mem(self, model_name: str) -> AsStatus:
        """Give the memory of a running model back, once its requests have ended; `load_device_mem` undoes it.

        The model is stopped: it stays installed, and requests are denied.
        """
        return self._answer(lambda: self._engine.stop_model(model_name))

    def load_device_mem(self, model_name: str) -> AsStatus:
        """Read the weights again and take requests: the model is started."""
        return self._answer(lambda: self._engine.start_model(model_name))

    # Adapters

    def load_lora(self, model_name: str, lora_name: str) -> AsStatus:
        """Load an adapter from a path, or from a file beside the model, where .gguf may be left out.

        Requests name it in `lora_name`. What is wrong with it is answered with a code of its own, as in
        DashInfer: NOT_FOUND, ALREADY_LOADED, NUM_EXCEED_LIMIT (lora_max_num), RANK_EXCEED_LIMIT
        (lora_max_rank).
        """
        try:
            path = _adapter_path(lora_name, self._engine.model_info(model_name).path)
            self._engine.load_adapter(model_name, lora_name, path)
        except LimitExceeded as error:
            full = len(self._engine.adapters(model_name)) >= self._lora_max_num[model_name]
            return self._refuse(
                error,
                AsStatus.ALLSPARK_LORA_NUM_EXCEED_LIMIT_ERROR
                if full
                else AsStatus.ALLSPARK_LORA_RANK_EXCEED_LIMIT_ERROR,
            )
        except MillstreamError as error:
            return self._refuse(error)
        self._thread.error = None
        return AsStatus.ALLSPARK_SUCCESS

    def unload_lora(self, model_name: str, lora_name: str) -> AsStatus:
        """Forget an adapter; ALLSPARK_LORA_IN_USE while requests run under it."""
        return self._answer(lambda: self._engine.unload_adapter(model_name, lora_name))

    # For the rest of the package

    def temporary_folder(self) -> str:
        """A new folder that lives as long as this engine."""
        folder = TemporaryDirectory(prefix="millstream-")
        self._folders.append(folder)
        return folder.name

    def _build_model_from_as_model_config(self, config: AsModelConfig | AsModelRuntimeConfigBuilder) -> None:
        built = config.build() if isinstance(config, AsModelRuntimeConfigBuilder) else config
        self._engine.install_model(engine_config(built))
        self._lora_max_num[built.model_name] = built.lora_max_num

    def _answer(self, verb: Callable[[], object]) -> AsStatus:
        """Call `verb`, and answer the status of its error."""
        try:
            verb()
        except MillstreamError as error:
            return self._refuse(error)
        self._thread.error = None
        return AsStatus.ALLSPARK_SUCCESS

    def _refuse(self, error: MillstreamError, status: AsStatus | None = None) -> AsStatus:
        status = status_of(error) if status is None else status
        logger.error("%s: %s", status.name, error)
        self._thread.error = error
        return status


def _adapter_path(name: str, model: Path) -> Path:
    """Where an adapter lies: beside the model's files, or where its name says."""
    folder = model if model.is_dir() else model.parent
    for path in (folder / name, folder / f"{name}.gguf"):
        if path.exists():
            return path
    return Path(name)
