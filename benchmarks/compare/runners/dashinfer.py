"""DashInfer 1.3 on the CPU, where it has no prefix cache: its queues are looked at in turn.

Settings: matmul_precision ("medium" multiplies in bf16, "highest" in fp32).
"""

from pathlib import Path
from time import sleep

import torch
from dashinfer import allspark

from .protocol import Job, Load, Server, run

PACKAGES = ("dashinfer",)
MODEL_NAME = "model"
_SECONDS_BETWEEN_LOOKS = 0.002
_NO_TOKEN = -1
_ENDED_BADLY = (allspark.GenerateRequestStatus.GenerateInterrupted,)


class DashInferServer:
    """An engine with a started model."""

    def __init__(self, job: Job) -> None:
        folder = Path(job.model)
        config = allspark.AsModelConfig(
            model_name=MODEL_NAME,
            model_path=str(folder / f"{MODEL_NAME}.dimodel"),
            weights_path=str(folder / f"{MODEL_NAME}.ditensors"),
            engine_max_length=job.max_length + 2,
            engine_max_batch=max(min(job.in_flight, len(job.requests)), len(job.warmup)),
        )
        config.compute_unit = "CPU:0"
        config.num_threads = job.threads
        config.matmul_precision = str(job.settings["matmul_precision"])
        self._engine = allspark.Engine()
        self._engine.build_model_from_config_struct(config)
        self._engine.start_model(MODEL_NAME)

    def serve(self, load: Load) -> None:
        """See `Server`."""
        active = {}
        while not load.finished:
            for number in load.hand_over():
                asked = load.requests[number]
                ids = torch.tensor([asked.token_ids], dtype=torch.int64)
                length = len(asked.token_ids) + asked.output_len
                _, handle, queue = self._engine.start_request(
                    MODEL_NAME, {"input_ids": ids.__dlpack__()}, generate_config=_greedy(length)
                )
                if queue is None:
                    raise RuntimeError(f"request {number} was refused")
                active[number] = (handle, queue)
            sleep(_SECONDS_BETWEEN_LOOKS)
            for number, (handle, queue) in list(active.items()):
                status = queue.GenerateStatus()
                elements = queue.GetNoWait()
                done = load.receive(number, elements.ids_from_generate if elements is not None else [])
                if not done and status in _ENDED_BADLY:
                    raise RuntimeError(f"request {number} was interrupted")
                if done:
                    self._engine.release_request(MODEL_NAME, handle)
                    del active[number]

    def close(self) -> None:
        """See `Server`."""
        self._engine.stop_model(MODEL_NAME)
        self._engine.release_model(MODEL_NAME)


def _greedy(length: int) -> dict[str, object]:
    """Its settings for the likeliest token at each step, up to `length` tokens with the prompt."""
    return {
        "max_length": length,
        "min_length": 0,
        "top_k": 1,
        "top_p": 0.0,
        "temperature": 1.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "no_repeat_ngram_size": 0,
        "early_stopping": False,
        "eos_token_id": _NO_TOKEN,
        "stop_words_ids": [],
        "seed": 0,
    }


def load_server(job: Job) -> Server:
    """Load the model in the folder that the job names."""
    return DashInferServer(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
