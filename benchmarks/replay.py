"""A worker without a model, whose answers are a text and whose steps can be looked at afterwards."""

import json
from collections.abc import Sequence
from time import perf_counter, process_time, sleep, thread_time

from ..backends.bundled import PYHELP
from ..backends.fake import FakeBackend, FakeWorker
from ..backends.worker import ModelInfo, Progress, Tokenizer, WorkerConfig, WorkerSpec
from ..scheduler import Batch, StepResult, Wants


class Mark:
    """One step as the worker saw it; moments on the wall clock and on the process's CPU clock, in seconds."""

    __slots__ = ("cpu", "execute_seconds", "num_chunks", "num_tokens", "wall")

    def __init__(self, num_chunks: int, num_tokens: int, wall: float, cpu: float) -> None:
        self.num_chunks = num_chunks
        self.num_tokens = num_tokens
        self.wall = wall
        self.cpu = cpu
        self.execute_seconds = 0.0


class ReplayWorker(FakeWorker):
    """Answers each chunk with the token of a text that belongs to its position."""

    def __init__(
        self, spec: WorkerSpec, text: Sequence[int], step_seconds: float, marks: list[Mark] | None
    ) -> None:
        """`step_seconds` are slept in each step, as if another device computed; `marks` gets the steps."""
        super().__init__(spec)
        self._text = list(text)
        self._step_seconds = step_seconds
        self._marks = marks

    def execute(self, batch: Batch) -> StepResult:
        """The next token of the text for everybody."""
        marks = self._marks
        if marks is not None:
            mark = Mark(len(batch.chunks), batch.num_tokens, perf_counter(), process_time())
            started = thread_time()
        if self._step_seconds:
            sleep(self._step_seconds)
        text, length = self._text, len(self._text)
        token_ids = [
            text[(chunk.start + len(chunk.tokens)) % length] if chunk.wants is Wants.TOKEN else None
            for chunk in batch.chunks
        ]
        result = StepResult(token_ids)
        if marks is not None:
            mark.execute_seconds = thread_time() - started
            marks.append(mark)
        return result


class ReplayBackend(FakeBackend):
    """The fake backend with such a worker."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        text: Sequence[int],
        *,
        vocab_size: int,
        step_seconds: float = 0.0,
        marks: list[Mark] | None = None,
    ) -> None:
        """`marks` gets all steps of all its workers; None: they are not kept."""
        super().__init__(vocab_size=vocab_size, max_length=1 << 20, tokenizer=tokenizer)
        self.vocab_size = vocab_size
        self._text = text
        self._step_seconds = step_seconds
        self._marks = marks

    def load(self, info: ModelInfo, config: WorkerConfig, progress: Progress) -> ReplayWorker:
        """A worker with this configuration's numbers."""
        spec = super().load(info, config, progress).spec
        return ReplayWorker(spec, self._text, self._step_seconds, self._marks)


def sample_text(tokenizer: Tokenizer) -> list[int]:
    """Token ids of the bundled model's answers: text as a model would write it."""
    lines = (PYHELP / "facts.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    return tokenizer.encode("\n".join(json.loads(line)["answer"] for line in lines))
