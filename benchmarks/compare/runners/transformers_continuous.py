"""transformers' continuous batching: its manager, with a thread of its own, as `transformers serve` uses it.

Settings: dtype, max_batch_tokens, page_size (whole pages of it are shared by prompts that begin alike).
"""

import logging
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig

from .protocol import Job, Load, Server, run

PACKAGES = ("transformers", "torch")
_NO_TOKEN = -1
"""An end-of-sequence id that no output has: its manager takes None for the model's own."""
_SECONDS_BETWEEN_LOOKS = 1.0


class ContinuousServer:
    """A manager that is running."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        transformers.utils.logging.set_verbosity(logging.ERROR)
        model: Any = AutoModelForCausalLM.from_pretrained(
            job.model, dtype=getattr(torch, str(job.settings["dtype"])), attn_implementation="sdpa"
        )
        model.generation_config.update(do_sample=False, eos_token_id=_NO_TOKEN, pad_token_id=0)
        page_size = int(job.settings["page_size"])
        pages_of_one = -(-job.max_length // page_size)
        self._manager = model.init_continuous_batching(
            generation_config=model.generation_config,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=page_size,
                num_blocks=job.num_sequences * pages_of_one,
                max_batch_tokens=int(job.settings["max_batch_tokens"]),
                max_requests_per_batch=job.in_flight,
                allow_block_sharing=job.prefix_cache,
            ),
        )
        self._manager.start()

    def serve(self, load: Load) -> None:
        """See `Server`."""
        numbers: dict[str, int] = {}
        received: dict[str, int] = {}
        while not load.finished:
            for number in load.hand_over():
                asked = load.requests[number]
                name = self._manager.add_request(
                    asked.token_ids, max_new_tokens=asked.output_len, streaming=True, eos_token_id=_NO_TOKEN
                )
                if name is None:
                    raise RuntimeError("the manager has stopped")
                numbers[name], received[name] = number, 0
            output = self._manager.get_result(timeout=_SECONDS_BETWEEN_LOOKS)
            if output is None:
                if not self._manager.is_running():
                    raise RuntimeError("the manager has stopped")
                continue
            if output.error is not None:
                raise RuntimeError(output.error)
            name = output.request_id
            load.receive(numbers[name], output.generated_tokens[received[name] :])
            received[name] = len(output.generated_tokens)

    def close(self) -> None:
        """See `Server`."""
        self._manager.stop(block=True, hard_stop=True)


def load_server(job: Job) -> Server:
    """Load the checkpoint that the job names."""
    return ContinuousServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
