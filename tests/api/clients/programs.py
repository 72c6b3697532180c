"""Clients that are programs of their own: they print one JSON object per finding."""

import asyncio
import json

from ...waiting import HANG_SECONDS


async def findings(*command, timeout=HANG_SECONDS):
    """Runs a program beside the test's server; what it prints, by the key "case" of each line."""
    program = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(timeout):
            output, errors = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert program.returncode == 0, errors.decode()
    lines = [json.loads(line) for line in output.splitlines()]
    return {line.pop("case"): line for line in lines}
