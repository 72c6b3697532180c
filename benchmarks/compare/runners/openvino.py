"""OpenVINO GenAI's ContinuousBatchingPipeline, stepped by this thread.

Settings: precision (of the activations), max_num_batched_tokens.
"""

import numpy as np
from openvino import Tensor
from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

from .protocol import Job, Load, Server, run

PACKAGES = ("openvino-genai", "openvino")
_BLOCK_SIZE = 32
"""Of its paged cache on a CPU."""


class OpenVinoServer:
    """A compiled model."""

    def __init__(self, job: Job) -> None:
        scheduler = SchedulerConfig()
        scheduler.max_num_batched_tokens = int(job.settings["max_num_batched_tokens"])
        scheduler.max_num_seqs = max(job.in_flight, len(job.warmup))
        scheduler.num_kv_blocks = job.num_sequences * (-(-job.max_length // _BLOCK_SIZE) + 1)
        scheduler.enable_prefix_caching = job.prefix_cache
        properties = {
            "INFERENCE_PRECISION_HINT": str(job.settings["precision"]),
            "INFERENCE_NUM_THREADS": job.threads,
        }
        self._pipeline = ContinuousBatchingPipeline(job.model, scheduler, "CPU", properties)
        self._handed_over = 0

    def serve(self, load: Load) -> None:
        """See `Server`."""
        active = {}
        while not load.finished:
            for number in load.hand_over():
                asked = load.requests[number]
                config = GenerationConfig(
                    max_new_tokens=asked.output_len, ignore_eos=True, do_sample=False, num_beams=1
                )
                ids = Tensor(np.asarray([asked.token_ids], np.int64))
                active[number] = self._pipeline.add_request(self._handed_over, ids, config)
                self._handed_over += 1
            if not self._pipeline.has_non_finished_requests():
                raise RuntimeError("the pipeline has dropped requests")
            self._pipeline.step()
            for number, handle in list(active.items()):
                if handle.can_read():
                    for output in handle.read().values():
                        if load.receive(number, output.generated_ids):
                            del active[number]

    def close(self) -> None:
        """See `Server`."""
        del self._pipeline


def load_server(job: Job) -> Server:
    """Compile the model in the folder that the job names."""
    return OpenVinoServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
