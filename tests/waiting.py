"""Waiting in tests: for what happens, never for seconds. Time tells only that it never will."""

import asyncio
from collections.abc import Callable

HANG_SECONDS = 120
"""What nothing takes that is still alive, however busy the machine is."""


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition on something in the same event loop."""
    async with asyncio.timeout(HANG_SECONDS):
        while not holds():
            await asyncio.sleep(0.001)
