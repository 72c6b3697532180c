"""transformers' `generate` with batches that begin and end together, as a script without a server uses it.

Prompts are padded on the left to the longest of their batch, and a batch goes on until its longest output is
there. Settings: dtype, batch_size, device (the CPU by default).
"""

import logging
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from .protocol import Job, Load, Server, run

PACKAGES = ("transformers", "torch")
_PADDING_ID = 0


class _EachStep(StoppingCriteria):
    """Is asked after each step whether to stop, and passes on what has come."""

    def __init__(self, load: Load, batch: list[int]) -> None:
        self._load = load
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        for number, token in zip(self._batch, input_ids[:, -1].tolist(), strict=True):
            if not self._load.receive(number, []):
                self._load.receive(number, [token])
        return torch.zeros(len(self._batch), dtype=torch.bool, device=input_ids.device)


class StaticServer:
    """A model."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        transformers.utils.logging.set_verbosity(logging.ERROR)
        self._batch_size = int(job.settings["batch_size"])
        self._device = str(job.settings.get("device", "cpu"))
        module: Any = AutoModelForCausalLM.from_pretrained(
            job.model, dtype=getattr(torch, str(job.settings["dtype"])), attn_implementation="sdpa"
        )
        self._model = module.to(self._device)
        self._model.generation_config.eos_token_id = None

    def serve(self, load: Load) -> None:
        """See `Server`."""
        for batch in load.batches(min(self._batch_size, load.in_flight)):
            prompts = [load.requests[number].token_ids for number in batch]
            longest = max(map(len, prompts))
            padding = [longest - len(prompt) for prompt in prompts]
            ids = [[_PADDING_ID] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
            mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
            self._model.generate(
                torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                do_sample=False,
                max_new_tokens=max(load.requests[number].output_len for number in batch),
                pad_token_id=_PADDING_ID,
                stopping_criteria=StoppingCriteriaList([_EachStep(load, batch)]),
            )

    def close(self) -> None:
        """See `Server`."""


def load_server(job: Job) -> Server:
    """Load the checkpoint that the job names."""
    return StaticServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
