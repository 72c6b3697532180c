"""Makes a random-weight checkpoint of a well-known shape, to measure speed without downloading a model.

python -m millstream.benchmarks.shapes --shape qwen2-0.5b OUT_DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..api.cli.terminal import CommandParser, command_status, progress_line
from .known_shapes import SHAPES
from .random_checkpoint import DTYPES, write_checkpoint


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m millstream.benchmarks.shapes",
        description="Write a checkpoint of random weights with the true numbers of a well-known model.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--shape", choices=list(SHAPES), metavar="NAME", help="which model's numbers")
    action.add_argument("--list", action="store_true", help="show the shapes and their sizes")
    parser.add_argument("out_dir", nargs="?", type=Path, help="a new or empty folder")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.list:
        for name, architecture in SHAPES.items():
            parameters = architecture.num_parameters
            print(f"{name:16}{architecture.class_name:22}{parameters / 1e6:10.1f} M parameters")
        return 0
    if options.out_dir is None:
        parser.error("OUT_DIR is missing")
    architecture = SHAPES[options.shape]
    with progress_line(f"writing {options.shape}") as progress:
        write_checkpoint(
            options.out_dir, architecture, dtype=options.dtype, seed=options.seed, progress=progress
        )
    parameters = architecture.num_parameters
    print(f"{options.out_dir}: {options.shape}, {parameters:,} parameters in {options.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
