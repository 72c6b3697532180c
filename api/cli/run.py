"""`millstream run`: questions answered at the same time, with what the engine did for them."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from time import monotonic
from typing import TYPE_CHECKING

from ...engine import EngineStats, ModelConfig, OutputStream
from ...errors import InvalidArgument, MillstreamError
from ..handlers import ModelHandler
from .options import add_engine_flags, add_model_argument, model_config
from .running import PromptMaker, RunningModel, run_async, running_model

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_REFRESH_SECONDS = 0.08
_MAX_NEW_TOKENS = 160
_WIDTH_OF_PIPES = 110
_WIDTH_OF_QUESTIONS = 33
"""The table of figures then fits into 80 columns."""

_LESSON = """You are pyhelp, an assistant for Python programmers.
heapq.heappush: Push item onto heap, maintaining the heap invariant.
collections.deque: A list-like sequence optimized for data accesses near its endpoints.
contextlib.suppress: Context manager to suppress specified exceptions.
functools.lru_cache: Least-recently-used cache decorator.
shutil.copytree: Recursively copy a directory tree and return the destination directory.
pathlib.Path.read_text: Open the file in text mode, read it, and close the file."""


@dataclass(frozen=True)
class Question:
    """What is asked, and the system message before it."""

    text: str
    system: str | None = None


QUESTIONS = (
    Question("What does os.path.join do?"),
    Question("What does collections.deque do?", _LESSON),
    Question("What is the signature of functools.lru_cache?"),
    Question("Tell me about the asyncio module."),
    Question("What does contextlib.suppress do?", _LESSON),
    Question("What is KeyError?"),
    Question("What does itertools.chain do?"),
    Question("Describe random.shuffle as JSON."),
)
"""Two of them share a long system message, which is computed once."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `run`."""
    add_model_argument(parser)
    parser.add_argument(
        "--requests", type=int, default=len(QUESTIONS), metavar="N", help="how many questions to ask"
    )
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    if options.requests < 1:
        raise InvalidArgument("--requests", options.requests, "1 or more")
    run_async(demonstrate(model_config(options), options.requests))
    return 0


@dataclass
class Answer:
    """A question under way."""

    question: Question
    stream: OutputStream
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self.pieces).strip()

    @property
    def finished(self) -> bool:
        """True when nothing more will come."""
        return self.stream.finish_reason is not None


async def demonstrate(config: ModelConfig, num_requests: int) -> None:
    """Ask `num_requests` questions at the same time and show the answers and a table of figures.

    Raises:
        MillstreamError: the engine could not finish an answer.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_PIPES)
    async with running_model(config) as model:
        started = monotonic()
        answers = [answer async for answer in ask_questions(model, num_requests)]
        peak = PeakUse()
        readers = [asyncio.create_task(_read(answer, model, peak)) for answer in answers]
        if console.is_terminal:
            await _show_live(console, answers)
        else:
            await _show_in_order(answers)
        await asyncio.gather(*readers)
        console.print(figures(answers))
        for line in summary(answers, model.engine.stats(model.name), peak, started):
            console.print(line, highlight=False, soft_wrap=True)


@dataclass
class PeakUse:
    """The most KV blocks that were held at a time."""

    blocks: int = 0


async def ask_questions(model: RunningModel, num_requests: int) -> AsyncIterator[Answer]:
    """Start the questions, as often as need be. Greedy: what the model knows best is what it says."""
    params = model.sampling_params({"max_new_tokens": _MAX_NEW_TOKENS, "temperature": 0})
    for question in islice(cycle(QUESTIONS), num_requests):
        (stream,) = await model.start(_prompt(model.handler, question), params)
        yield Answer(question, stream)


def _prompt(handler: ModelHandler, question: Question) -> list[int]:
    """The question for this model; where there is no chat template, the system message's text comes first."""
    if handler.tokenizer.chat_template is not None:
        return PromptMaker(handler, chat=True, system=question.system).from_text(question.text)
    text = question.text if question.system is None else f"{question.system}\n\n{question.text}"
    return PromptMaker(handler, chat=False, system=None).from_text(text)


async def _read(answer: Answer, model: RunningModel, peak: PeakUse) -> None:
    async for output in answer.stream:
        answer.pieces.append(output.text)
        peak.blocks = max(peak.blocks, model.engine.stats(model.name).held_blocks)
    if answer.stream.error is not None:
        raise MillstreamError(answer.stream.error)


async def _show_live(console: "Console", answers: Sequence[Answer]) -> None:
    """Redraw all answers until the last one is complete."""
    from rich.live import Live

    with Live(_answers_table(answers), console=console, auto_refresh=False) as live:
        while not all(answer.finished for answer in answers):
            await asyncio.sleep(_REFRESH_SECONDS)
            live.update(_answers_table(answers), refresh=True)
        await asyncio.sleep(0)
        live.update(_answers_table(answers), refresh=True)


async def _show_in_order(answers: Sequence[Answer]) -> None:
    for number, answer in enumerate(answers, 1):
        await answer.stream.await_finished()
        await asyncio.sleep(0)
        print(f"[{number}] {answer.question.text}\n    {answer.text}", flush=True)


def _answers_table(answers: Sequence[Answer]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1), expand=True)
    table.add_column(width=2, justify="right")
    table.add_column(ratio=2)
    table.add_column(ratio=5)
    for number, answer in enumerate(answers, 1):
        style = "green" if answer.finished else "yellow"
        cursor = "" if answer.finished else "▌"
        table.add_row(
            Text(str(number), style=style), Text(answer.question.text, style="bold"), answer.text + cursor
        )
    return table


def figures(answers: Sequence[Answer]) -> "Table":
    """A row for each request."""
    from rich.table import Table

    table = Table(
        title="requests",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("#", justify="right", min_width=2)
    table.add_column("question", no_wrap=True, max_width=_WIDTH_OF_QUESTIONS)
    for name in ("prompt", "cached", "output", "first token", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for number, answer in enumerate(answers, 1):
        stream = answer.stream
        times = stream.times
        output = stream.num_output_tokens
        first = "" if times.first_token is None else f"{(times.first_token - times.arrival) * 1000:.0f} ms"
        rate = ""
        if times.first_token is not None and times.last_token is not None and output > 1:
            rate = f"{(output - 1) / max(times.last_token - times.first_token, 1e-9):.1f}"
        table.add_row(
            str(number),
            answer.question.text,
            str(stream.num_prompt_tokens),
            str(stream.num_cached_tokens),
            str(output),
            first,
            rate,
        )
    return table


def summary(answers: Sequence[Answer], stats: EngineStats, peak: PeakUse, started: float) -> list[str]:
    """What all requests took together; `started` is when the first was made, on the monotonic clock."""
    ends = [answer.stream.times.finished for answer in answers]
    seconds = max(max(end for end in ends if end is not None) - started, 1e-9)
    output = sum(answer.stream.num_output_tokens for answer in answers)
    prompt = sum(answer.stream.num_prompt_tokens for answer in answers)
    cached = sum(answer.stream.num_cached_tokens for answer in answers)
    in_use = peak.blocks / stats.total_blocks
    return [
        "",
        f"{len(answers)} requests in {seconds:.2f} s: {output / seconds:.1f} output tokens/s, "
        f"{(prompt + output) / seconds:.1f} tokens/s with prompts",
        f"batch occupancy: {stats.mean_batch_size:.1f} sequences per step, {stats.steps} steps",
        f"KV cache: at most {peak.blocks} of {stats.total_blocks} blocks held ({in_use:.1%})",
        f"prefix cache: {cached} of {prompt} prompt tokens were found in it",
    ]
