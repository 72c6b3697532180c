"""Background: responses that are made while nobody waits for them."""

import asyncio
from collections.abc import Mapping

from ..errors import too_many
from ..schemas.responses import Response
from .run import ResponseRun
from .store import ResponseStore

_LOOK_AGAIN = 1.0
"""Seconds until it is worth asking again whether a response of the key has ended."""


class Background:
    """Runs that are asked for by their id; at their end they go into the store."""

    def __init__(self, store: ResponseStore, limits: Mapping[str, int]) -> None:
        """`limits` has how many may run at a time for a tenant, for those with a limit."""
        self._store = store
        self._limits = limits
        self._runs: dict[tuple[str, str], tuple[ResponseRun, asyncio.Task[None]]] = {}

    def require_room(self, tenant: str) -> None:
        """Raise ApiError 429 where the tenant's limit is reached."""
        limit = self._limits.get(tenant)
        running = sum(owner == tenant for owner, _ in self._runs)
        if limit is not None and running >= limit:
            message = f"{running} background responses of this API key are running; at most {limit} may"
            raise too_many(message, _LOOK_AGAIN, code="rate_limit_exceeded")

    async def start(self, run: ResponseRun) -> Response:
        """Let a response go on by itself; gives what there is of it."""
        key = run.tenant, run.id
        task = asyncio.create_task(self._work(run), name=run.id)
        self._runs[key] = run, task
        task.add_done_callback(lambda _: self._runs.pop(key, None))
        # A task that is cancelled before it has begun would never enter the generation, nor leave it.
        await asyncio.sleep(0)
        return run.so_far()

    def get(self, tenant: str, response_id: str) -> ResponseRun | None:
        """One that has not ended."""
        found = self._runs.get((tenant, response_id))
        return None if found is None else found[0]

    async def cancel(self, tenant: str, response_id: str) -> None:
        """End a response at the next step, and keep what there is of it; nothing where it has ended."""
        found = self._runs.get((tenant, response_id))
        if found is not None:
            found[1].cancel()
            await asyncio.wait((found[1],))

    async def _work(self, run: ResponseRun) -> None:
        with run.generation:
            try:
                response = await run.end()
            except asyncio.CancelledError:
                response = run.cancelled()
        self._store.keep(run.kept(response))
