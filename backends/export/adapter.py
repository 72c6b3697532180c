"""Exports a PEFT adapter: `python -m millstream.backends.export.adapter CHECKPOINT FOLDER OUT.gguf`.

CHECKPOINT is the model that the adapter was trained for, of a family that can be exported itself; FOLDER
holds adapter_config.json and adapter_model.safetensors.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import MillstreamError
from .checkpoint import check_paths

if TYPE_CHECKING:
    from .lora import ExportedAdapter


def export_adapter(checkpoint: Path, folder: Path, out: Path) -> "ExportedAdapter":
    """Write the adapter in `folder`, made for the model in `checkpoint`, to the new file `out`.

    Raises:
        InvalidArgument: `out` is not allowed.
        ModelNotFound: there is no such folder.
        ModelFormatError: something in one of them is missing, damaged, or does not fit the other.
        ModelError: the file cannot be written.
        NotSupported: the gguf package is missing, or nothing in llama.cpp computes what this adapter does.
    """
    check_paths(out, checkpoint, folder)
    from .lora import write_adapter

    return write_adapter(checkpoint, folder, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m millstream.backends.export.adapter",
        description="Export a PEFT adapter (LoRA) to a GGUF file.",
    )
    parser.add_argument("checkpoint", type=Path, help="folder of the model that the adapter is made for")
    parser.add_argument("folder", type=Path, help="with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("out", type=Path, help="file to write, ending in .gguf")
    options = parser.parse_args(arguments)
    try:
        done = export_adapter(options.checkpoint, options.folder, options.out)
    except MillstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{done.path}: {done.architecture}, rank {done.rank}, {done.num_parameters:,} parameters for "
        f"{done.num_matrices} matrices, {done.num_bytes:,} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
