"""Exports a checkpoint to a GGUF file: `python -m millstream.backends.export.checkpoint CHECKPOINT OUT.gguf`.

The dense families that both the native decoder and llama.cpp run can be exported. Matrices get the type that
was asked for; vectors stay f32, and in a q4_0 file the embedding and the head are q8_0.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidArgument, MillstreamError, ModelNotFound, NotSupported

if TYPE_CHECKING:
    from .file import ExportedModel

EXPORT_TYPES = ("bf16", "f16", "f32", "q8_0", "q4_0")


def export_gguf(
    checkpoint: Path,
    out: Path,
    kind: str = "bf16",
    progress: Callable[[float], None] = lambda share: None,
) -> "ExportedModel":
    """Write the model in the folder `checkpoint` to the file `out`, which must not exist yet.

    Args:
        kind: type of the matrices, one of EXPORT_TYPES.
        progress: told which share of the file is written, from 0 to 1.

    Raises:
        InvalidArgument: `kind` or `out` is not allowed.
        ModelNotFound: there is no folder `checkpoint`.
        ModelFormatError: something in it is missing or damaged.
        ModelError: the file cannot be written.
        NotSupported: the gguf package is missing, or nothing in llama.cpp computes what this model does.
    """
    if kind not in EXPORT_TYPES:
        raise InvalidArgument("type", kind, ", ".join(EXPORT_TYPES))
    check_paths(out, checkpoint)
    from .file import write_model

    return write_model(checkpoint, out, kind, progress)


def check_paths(out: Path, *folders: Path) -> None:
    """Raise the errors of `export_gguf` that come before anything is read."""
    if out.suffix != ".gguf" or not out.parent.is_dir() or out.exists():
        raise InvalidArgument("out", str(out), "a new file ending in .gguf, in a folder that exists")
    for folder in folders:
        if not folder.is_dir():
            raise ModelNotFound(f"there is no folder {str(folder)!r}")
    if find_spec("gguf") is None:
        raise NotSupported("writing GGUF files needs the gguf package: pip install gguf")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m millstream.backends.export.checkpoint",
        description="Export a checkpoint to a GGUF file.",
    )
    parser.add_argument("checkpoint", type=Path, help="model folder with config.json and safetensors weights")
    parser.add_argument("out", type=Path, help="file to write, ending in .gguf")
    parser.add_argument("--type", default="bf16", choices=EXPORT_TYPES, help="type of the matrices")
    options = parser.parse_args(arguments)
    try:
        done = export_gguf(options.checkpoint, options.out, options.type)
    except MillstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{done.path}: {done.architecture}, {done.num_parameters:,} parameters in {done.num_tensors} "
        f"tensors, {done.num_bytes:,} bytes, context of {done.context_length:,} tokens"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
