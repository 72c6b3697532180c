"""Millstream itself, as a program uses it: an AsyncEngine, and a coroutine that reads each request's stream.

Settings: fields of ModelConfig, before what the job implies.
"""

import asyncio
import sys
from typing import Any

from ....engine import AsyncEngine, FinishReason, ModelConfig, RequestOptions, new_event_loop
from ....errors import MillstreamError
from ....scheduler import SamplingParams
from .protocol import Job, Load, Server, run

PACKAGES = ("millstream", "torch", "llama-cpp-python", "numpy")
_MODEL = "measured"
_BLOCK_SIZE = 16


class MillstreamServer:
    """An engine with one model on an event loop of its own."""

    def __init__(self, job: Job) -> None:
        settings: dict[str, Any] = dict(job.settings)
        for name in settings:
            if name not in ModelConfig.__struct_fields__:
                raise MillstreamError(f"not available: ModelConfig has no {name}")
        self._runner = asyncio.Runner(loop_factory=new_event_loop)
        self._engine = AsyncEngine()
        blocks_of_one = -(-job.max_length // _BLOCK_SIZE)
        implied: dict[str, Any] = {
            "threads": job.threads,
            "max_length": job.max_length,
            "max_num_seqs": job.in_flight,
            "block_size": _BLOCK_SIZE,
            "num_blocks": job.num_sequences * blocks_of_one,
            "enable_prefix_cache": job.prefix_cache,
        }
        config = ModelConfig(model=job.model, name=_MODEL, **(implied | settings))
        try:
            self._runner.run(self._start(config))
        except BaseException:
            self.close()
            raise

    def serve(self, load: Load) -> None:
        """See `Server`."""
        self._runner.run(self._serve(load))

    def close(self) -> None:
        """See `Server`."""
        self._runner.run(self._engine.close())
        self._runner.close()

    async def _start(self, config: ModelConfig) -> None:
        await self._engine.install_model(config)
        await self._engine.start_model(_MODEL)

    async def _serve(self, load: Load) -> None:
        async with asyncio.TaskGroup() as group:

            def hand_over() -> None:
                for number in load.hand_over():
                    group.create_task(one(number))

            async def one(number: int) -> None:
                asked = load.requests[number]
                params = SamplingParams(temperature=0, ignore_eos=True, max_new_tokens=asked.output_len)
                _, stream = await self._engine.start_request(
                    _MODEL, asked.token_ids, params, RequestOptions(detokenize=False)
                )
                async for output in stream:
                    load.receive(number, output.token_ids)
                if stream.finish_reason is not FinishReason.LENGTH:
                    raise MillstreamError(f"request {number} ended by {stream.error or stream.finish_reason}")
                hand_over()

            hand_over()


def load_server(job: Job) -> Server:
    """Load the model that the job names."""
    return MillstreamServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
