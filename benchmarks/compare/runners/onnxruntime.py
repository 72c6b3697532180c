"""onnxruntime-genai's Generator, with batches that begin and end together.

Prompts are padded on the left to the longest of their batch. Settings: batch_size.
"""

import json

import numpy as np
import onnxruntime_genai as og

from .protocol import Job, Load, Server, run

PACKAGES = ("onnxruntime-genai", "onnxruntime")


class OnnxServer:
    """A model."""

    def __init__(self, job: Job) -> None:
        self._batch_size = int(job.settings["batch_size"])
        config = og.Config(job.model)
        options = {"session_options": {"intra_op_num_threads": job.threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = og.Model(config)

    def serve(self, load: Load) -> None:
        """See `Server`."""
        for batch in load.batches(min(self._batch_size, load.in_flight)):
            prompts = [load.requests[number].token_ids for number in batch]
            longest = max(map(len, prompts))
            steps = max(load.requests[number].output_len for number in batch)
            options = {"batch_size": len(batch), "max_length": longest + steps, "min_length": longest + steps}
            params = og.GeneratorParams(self._model)
            params.set_search_options(do_sample=False, past_present_share_buffer=True, **options)
            generator = og.Generator(self._model, params)
            generator.append_tokens(
                np.asarray([[0] * (longest - len(prompt)) + prompt for prompt in prompts], np.int32)
            )
            for _ in range(steps):
                generator.generate_next_token()
                for number, token in zip(batch, generator.get_next_tokens().tolist(), strict=True):
                    if not load.receive(number, []):
                        load.receive(number, [token])

    def close(self) -> None:
        """See `Server`."""
        del self._model


def load_server(job: Job) -> Server:
    """Load the model in the folder that the job names."""
    return OnnxServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
