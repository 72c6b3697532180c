"""CTranslate2's Generator, with batches that begin together.

Settings: compute_type, batch_size.
"""

import json
from pathlib import Path

import ctranslate2

from .protocol import Job, Load, Server, run

PACKAGES = ("ctranslate2",)


class CTranslate2Server:
    """A model, and the words of its vocabulary, which are what it takes."""

    def __init__(self, job: Job) -> None:
        self._batch_size = int(job.settings["batch_size"])
        vocabulary = Path(job.model) / "vocabulary.json"
        self._words: list[str] = json.loads(vocabulary.read_text(encoding="utf-8"))
        self._generator = ctranslate2.Generator(
            job.model,
            device="cpu",
            compute_type=str(job.settings["compute_type"]),
            inter_threads=1,
            intra_threads=job.threads,
        )

    def serve(self, load: Load) -> None:
        """See `Server`."""
        for batch in load.batches(min(self._batch_size, load.in_flight)):
            prompts = [[self._words[one] for one in load.requests[number].token_ids] for number in batch]
            steps = max(load.requests[number].output_len for number in batch)

            def receive(step: ctranslate2.GenerationStepResult, batch: list[int] = batch) -> bool:
                return load.receive(batch[step.batch_id], [step.token_id])

            # A least length keeps the end-of-sequence token from coming out.
            self._generator.generate_batch(
                prompts,
                max_length=steps,
                min_length=steps,
                beam_size=1,
                sampling_topk=1,
                include_prompt_in_result=False,
                callback=receive,
            )

    def close(self) -> None:
        """See `Server`."""
        del self._generator


def load_server(job: Job) -> Server:
    """Load the model in the folder that the job names."""
    return CTranslate2Server(job)


def main() -> int:
    """The runner's program."""
    return run(load_server, PACKAGES)
