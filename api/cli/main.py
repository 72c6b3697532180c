"""The command line: `millstream serve`, `run`, `generate`, `chat`, `models` and `doctor`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from .terminal import CommandParser, command_status

Command = Callable[[argparse.Namespace], int]

_COMMANDS = {
    "serve": (".serve", "serve models over HTTP, as OpenAI does"),
    "run": (".run", "answer several questions at the same time, as a demonstration"),
    "generate": (".generate", "continue or answer prompts, a few or a file of them"),
    "chat": (".chat", "talk with a model"),
    "models": (".models", "list the models on this machine"),
    "doctor": (".doctor", "show what was found on this machine, and what a model would take"),
}
"""Command -> the module that has its `add_flags(parser)` and `run(options)`, and what it does."""


def main(argv: Sequence[str]) -> int:
    """Run a command line and return its exit status.

    0 is success, 1 that some rows of a file failed, 2 a bad command line or input, 130 Ctrl-C and 141 a
    reader of stdout that has gone away.
    """
    return command_status(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="millstream", description="An asyncio continuous-batching engine for large language models."
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    # Only the module of the command at hand is imported, so that its flags cost the others nothing.
    wanted = next((word for word in argv if word in _COMMANDS), None)
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == wanted:
            home = import_module(module, __package__)
            home.add_flags(command)
            command.set_defaults(run=home.run)
    options = parser.parse_args(argv)
    if options.version:
        from ...version import __version__

        print(f"millstream {__version__}")
        return 0
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    run: Command = options.run
    return run(options)
