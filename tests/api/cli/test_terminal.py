"""How commands end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from millstream.api.cli.terminal import command_status
from millstream.errors import InvalidArgument

from ..server_process import ServerProcess


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgument("n", 0, "1 or more"), 2),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
    ],
)
def test_status(error: BaseException, status: int) -> None:
    assert command_status(raising(error)) == status


def test_success_passes_its_status_on() -> None:
    assert command_status(lambda: 1) == 1


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command_status(raising(InvalidArgument("n", "a\nb", "one\nline")))
    assert capsys.readouterr().err == "millstream: error: n is 'a\\nb'; allowed: one line\n"


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        command_status(raising(ZeroDivisionError()))


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = (
        "import sys; from millstream.api.cli.terminal import command_status\n"
        "def command():\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "    return 0\n"
        "sys.exit(command_status(command))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


LOADS_FOR_EVER = """
import signal, sys, threading
from types import SimpleNamespace
from millstream.api.cli import chat, options, running
from millstream.api.cli.terminal import command_status
from millstream.backends.bundled import PYHELP
from millstream.backends.fake import FakeBackend
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.engine import ModelConfig


# Whoever starts the tests in the background may have taken the signal away from them.
signal.signal(signal.SIGINT, signal.default_int_handler)


class EndlessBackend(FakeBackend):
    def load(self, info, config, progress):
        print("loading for ever", file=sys.stderr, flush=True)
        threading.Event().wait()


backend = EndlessBackend(vocab_size=4096, tokenizer=HFTokenizer.from_folder(PYHELP))
config = ModelConfig(model="m", backend=backend, max_length=64, num_blocks=64)


async def load():
    async with running.running_model(config):
        pass


def talk():
    chat.model_config = lambda options: config
    return chat.run(SimpleNamespace(system=None))


sys.exit(command_status({"generate": lambda: running.run_async(load()), "chat": talk}[sys.argv[1]]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX'")
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_ends_a_command_whose_model_is_still_being_loaded(command: str) -> None:
    process = ServerProcess("-c", LOADS_FOR_EVER, command)
    try:
        process.wait_for("loading for ever")
        process.signal(signal.SIGINT)
        assert process.end() == 130
        assert process.lines == ["loading for ever"]
    finally:
        process.close()
