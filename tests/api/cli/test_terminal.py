"""How commands end."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from millstream.api.cli.terminal import command_status
from millstream.errors import InvalidArgument


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
