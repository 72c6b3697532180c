"""Models written by `serialize_to_path`: a small graph file beside a checkpoint folder.

`<prefix>.asgraph` is a JSON file that names the format, its version, the model's file (empty: the whole
folder) and the data type; `<prefix>.asparam` is a folder in the layout it came in (weights hard-linked where
the file system allows, copied elsewhere), so every other tool reads it too.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec

from ..errors import InvalidArgument, ModelFormatError, ModelNotFound
from ..version import __version__

FORMAT = "millstream"
GRAPH_SUFFIX = ".asgraph"
WEIGHTS_SUFFIX = ".asparam"

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_OTHERS = (".json", ".jinja", ".model", ".spm", ".tiktoken", ".txt")
_NOT_FOR_INFERENCE = frozenset({"training_args.bin", "optimizer.bin"})


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a graph file."""

    format: str
    version: str
    """Version of Millstream that wrote it."""
    file: str
    """Name of the model's file in the folder; empty where the folder is the model."""
    data_type: str
    quantization: str = "none"
    config_changes: dict[str, Any]
    """Entries of config.json that differ from the model it was made of."""

    @classmethod
    def of(
        cls, source: Path, data_type: str, config_changes: dict[str, Any], quantization: str = "none"
    ) -> "Graph":
        """For a model made of `source`, a folder or a file, by this version."""
        return cls(
            format=FORMAT,
            version=__version__,
            file=source.name if source.is_file() else "",
            data_type=data_type,
            quantization=quantization,
            config_changes=config_changes,
        )


def paths_of(model_dir: str | os.PathLike[str], prefix: str) -> tuple[Path, Path]:
    """Graph file and checkpoint folder of the model `prefix` in `model_dir`."""
    folder = Path(model_dir)
    return folder / (prefix + GRAPH_SUFFIX), folder / (prefix + WEIGHTS_SUFFIX)


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """Read a graph file.

    Raises:
        ModelNotFound: there is none.
        ModelFormatError: Millstream did not write it, or its folder is gone.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFound(f"{path} does not exist; serialize_to_path writes it")
    try:
        graph = msgspec.json.decode(path.read_bytes(), type=Graph)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            f"{path} was not written by Millstream, which does not read DashInfer's own binary format; "
            "serialise the Hugging Face model again"
        ) from error
    if graph.format != FORMAT:
        raise ModelFormatError(f"{path} has the format {graph.format!r}; allowed: {FORMAT!r}")
    return graph


def source_of(model_path: str, weights_path: str) -> tuple[str, str, str]:
    """What the two paths of an AsModelConfig name: a model for the engine, its data type and quantisation.

    A graph file leads to the folder beside it; anything else is a folder, a file, a hub id or a bundled name.

    Raises:
        ModelNotFound, ModelFormatError: see `read_graph`.
        InvalidArgument: the two paths are not of one model.
    """
    if not model_path.endswith(GRAPH_SUFFIX):
        if weights_path not in ("", model_path):
            raise InvalidArgument("weights_path", weights_path, f"{model_path!r}, as model_path, or nothing")
        return model_path, "auto", "none"
    graph = read_graph(model_path)
    folder = Path(model_path).with_suffix(WEIGHTS_SUFFIX)
    if weights_path and Path(weights_path) != folder:
        raise InvalidArgument("weights_path", weights_path, f"{str(folder)!r}, beside model_path, or nothing")
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} does not exist; {model_path} needs it beside it")
    model = str(folder / graph.file) if graph.file else str(folder)
    return model, graph.data_type, graph.quantization


def is_written(model_dir: str | os.PathLike[str], prefix: str, wanted: Graph) -> bool:
    """Whether the model is there, complete and as `wanted`, whichever version wrote it."""
    graph_path, folder = paths_of(model_dir, prefix)
    try:
        graph = read_graph(graph_path)
    except (ModelNotFound, ModelFormatError):
        return False
    return folder.is_dir() and msgspec.structs.replace(graph, version=wanted.version) == wanted


def write_model(
    model_dir: str | os.PathLike[str],
    prefix: str,
    source: Path,
    graph: Graph,
    *,
    extra_files: Mapping[str, str],
) -> None:
    """Write the model of `source`, a folder or a file, as `prefix` into `model_dir`; an older one gives way.

    `extra_files` are names and texts of further files for the folder.
    """
    graph_path, folder = paths_of(model_dir, prefix)
    folder.parent.mkdir(parents=True, exist_ok=True)
    graph_path.unlink(missing_ok=True)
    made = Path(mkdtemp(prefix=f".{prefix}.", dir=folder.parent))
    try:
        made.chmod(0o755)
        fill_folder(made, source, link=_hard_link, config_changes=graph.config_changes)
        for name, text in extra_files.items():
            (made / name).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    # The graph file comes last: where it is, the model is complete.
    graph_path.write_bytes(msgspec.json.encode(graph))


def fill_folder(
    folder: Path, source: Path, *, link: Callable[[Path, Path], None], config_changes: Mapping[str, Any]
) -> None:
    """Put what inference needs of `source` into `folder`: weights by `link(from, to)`, small files as copies.

    Raises:
        InvalidArgument: there are `config_changes` and no config.json.
    """
    if source.is_file():
        files = [source]
    else:
        files = [file for file in sorted(source.iterdir()) if file.is_file() and _is_needed(file)]
    for file in files:
        if file.suffix in _WEIGHTS:
            link(file.resolve(), folder / file.name)
        else:
            shutil.copyfile(file, folder / file.name)
    templates = source / "chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)
    if config_changes:
        config = folder / "config.json"
        if not config.is_file():
            raise InvalidArgument(
                "rope scaling", dict(config_changes), "nothing for a model without config.json"
            )
        content = msgspec.json.decode(config.read_bytes(), type=dict[str, Any])
        config.write_bytes(msgspec.json.format(msgspec.json.encode({**content, **config_changes})))


def symbolic_link(source: Path, target: Path) -> None:
    """`link` for folders that live no longer than the process."""
    target.symlink_to(source)


def _hard_link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _is_needed(file: Path) -> bool:
    return file.suffix in _WEIGHTS + _OTHERS and file.name not in _NOT_FOR_INFERENCE
