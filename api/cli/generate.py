"""`millstream generate`: prompts from the command line as text, or files of prompts as rows of JSON."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec

from ...engine import ModelConfig, OutputStream
from ...errors import InvalidArgument, MillstreamError
from ...scheduler import SamplingParams
from .batch_file import InputRow, Key, Result, Row, finished_rows, read_rows
from .completer import Completer, complete_rows
from .openai_batch import BatchRequest
from .options import (
    MODEL_HELP,
    add_engine_flags,
    add_sampling_flags,
    model_config,
    reads_like_a_model,
    sampling_fields,
)
from .running import PromptMaker, RunningModel, run_async, running_model
from .terminal import counting_bar

SOME_FAILED = 1

_ROWS = """A row of --input has prompt (a text or token ids) or messages (a conversation); where wanted
custom_id (its name in the results) and sampling parameters under the names of the flags or of the server's
fields (max_tokens, min_tokens, …), at the row's top or in an object params; the rest comes back as extra.
A result has index, custom_id, model, outputs (text, finish_reason, output_tokens, token_ids), prompt_tokens,
cached_tokens, extra and error. Rows of OpenAI's batch format (custom_id, method, url, body; for
/v1/chat/completions, /v1/completions and /v1/embeddings) are answered in its form: id, custom_id, response
(status_code, request_id, body) and error."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `generate`."""
    parser.epilog = _ROWS
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[MODEL] PROMPT",
        help="texts to answer or to continue; without --model, a first one that is a bundled name, a path "
        "or owner/name is the model",
    )
    parser.add_argument("--model", default=argparse.SUPPRESS, help=MODEL_HELP)
    parser.add_argument("--input", metavar="FILE", help="rows of JSON (see below), - for standard input")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="results as rows of JSON; rows that are in it already are skipped (default: standard output)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="do rows again that have an error in the output"
    )
    parser.add_argument("--json", action="store_true", help="print rows of JSON for PROMPTs too")
    parser.add_argument("--concurrency", type=int, metavar="N", help="rows of a file that are in the engine")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--stats", action="store_true", help="say on stderr how long it took")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", default=None, help="use the model's chat template")
    form.add_argument("--raw", dest="chat", action="store_false", default=None, help="do not use it")
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    prompts = list(options.words)
    if "model" not in options and prompts and reads_like_a_model(prompts[0]):
        options.model = prompts.pop(0)
    task = GenerateTask(
        config=model_config(options),
        prompts=tuple(prompts),
        input=options.input,
        output=None if options.output is None else Path(options.output),
        retry_failed=options.retry_failed,
        json=options.json,
        concurrency=options.concurrency,
        chat=options.chat,
        system=options.system,
        sampling=sampling_fields(options),
        stats=options.stats,
    )
    return run_async(task.run())


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """What the command line asked for.

    Raises:
        InvalidArgument: flags that do not go together.
    """

    config: ModelConfig
    prompts: tuple[str, ...] = ()
    input: str | None = None
    output: Path | None = None
    retry_failed: bool = False
    json: bool = False
    concurrency: int | None = None
    chat: bool | None = None
    system: str | None = None
    sampling: Mapping[str, Any]
    stats: bool = False

    def __post_init__(self) -> None:
        if bool(self.prompts) == (self.input is not None):
            raise InvalidArgument("PROMPT", list(self.prompts), "prompts, or --input FILE, and not both")
        if self.concurrency is not None and (self.input is None or self.concurrency < 1):
            raise InvalidArgument("--concurrency", self.concurrency, "1 or more, together with --input")
        if self.output is not None and self.input is not None and self.output == Path(self.input):
            raise InvalidArgument("--output", str(self.output), "another file than --input")
        if self.retry_failed and self.output is None:
            raise InvalidArgument("--retry-failed", True, "use together with --output")
        if self.system is not None and self.chat is False:
            raise InvalidArgument("--system", self.system, "nothing together with --raw")
        as_text = self.input is None and self.output is None and not self.json
        for name in ("logprobs", "prompt_logprobs"):
            if as_text and name in self.sampling:
                flag = f"--{name.replace('_', '-')}"
                raise InvalidArgument(flag, self.sampling[name], "use together with --json or --output")
        # What follows would be found out later, too, but after a model was loaded in vain.
        if self.output is not None and (self.output.is_dir() or not self.output.parent.is_dir()):
            raise InvalidArgument("--output", str(self.output), "a file in a folder that is there")
        if self.input is not None and self.input != "-":
            Path(self.input).open("rb").close()
        SamplingParams(**self.sampling)

    async def run(self) -> int:
        """Load the model and do it; returns the exit status."""
        name = self.config.installed_name
        rows: Sequence[Row] = [InputRow(index=n, prompt=prompt) for n, prompt in enumerate(self.prompts)]
        if self.input is not None:
            rows = list(read_rows(self._lines()))
            self._check_batch(rows)
        done: set[Key] = set()
        if self.output is not None:
            done = finished_rows(self.output, name, retry_failed=self.retry_failed)
        async with running_model(self.config) as model:
            maker = PromptMaker(model.handler, chat=self.chat, system=self.system)
            if self.input is None and self.output is None and not self.json:
                await self._print_text(model, maker)
                return 0
            return await self._write_rows(model, maker, rows, done)

    async def _print_text(self, model: RunningModel, maker: PromptMaker) -> None:
        """All prompts at the same time, printed one after the other, the one at hand as it comes."""
        params = model.sampling_params(self.sampling)
        started = [await model.start(maker.from_text(prompt), params) for prompt in self.prompts]
        titles = len(self.prompts) > 1 or params.n > 1
        for prompt, streams in zip(self.prompts, started, strict=True):
            for sample, stream in enumerate(streams, 1):
                if titles:
                    number = f" [{sample}/{params.n}]" if params.n > 1 else ""
                    print(f"==> {_one_line(prompt)}{number} <==")
                await _print_stream(stream)
                if stream is not started[-1][-1]:
                    print()
        if self.stats:
            _print_stats([stream for streams in started for stream in streams])

    def _check_batch(self, rows: Sequence[Row]) -> None:
        """Raise InvalidArgument where flags are given that OpenAI's format has no use for."""
        if not any(isinstance(row, BatchRequest) for row in rows):
            return
        flags = {"--system": self.system, "--chat or --raw": self.chat, **self.sampling}
        for flag, value in flags.items():
            if value is not None:
                raise InvalidArgument(flag, value, "nothing with OpenAI's batch format, whose bodies say it")

    async def _write_rows(
        self, model: RunningModel, maker: PromptMaker, rows: Sequence[Row], done: set[Key]
    ) -> int:
        completer = Completer(model, maker, self.sampling)
        limit = self.concurrency or 2 * self.config.max_num_seqs
        counts = Counts()
        started = monotonic()
        with ExitStack() as stack:
            out = sys.stdout.buffer if self.output is None else stack.enter_context(self.output.open("ab"))
            advance = stack.enter_context(counting_bar("generating", len(rows)))

            def write(row: Result) -> None:
                out.write(msgspec.json.encode(row) + b"\n")
                out.flush()
                counts.add(row)
                advance(1)

            waiting = (row for row in rows if not _skip(row, done, counts, advance))
            await complete_rows(completer, waiting, write, limit)
        if self.output is not None or self.stats:
            print(counts.describe(monotonic() - started), file=sys.stderr)
        return SOME_FAILED if counts.failed else 0

    def _lines(self) -> list[bytes]:
        """The rows as they stand in the input.

        All of them at once: waiting for the next one from a pipe would hold up the engine.
        """
        source = sys.stdin.buffer.read() if self.input == "-" else Path(self.input or "").read_bytes()
        return [line for line in source.split(b"\n") if line.strip()]


def _skip(row: Row, done: set[Key], counts: "Counts", advance: Callable[[int], None]) -> bool:
    if row.key not in done:
        return False
    counts.skipped += 1
    advance(1)
    return True


@dataclass
class Counts:
    """What has become of the rows so far."""

    completed: int = 0
    failed: int = 0
    skipped: int = 0
    output_tokens: int = 0

    def add(self, row: Result) -> None:
        """Count one more row."""
        self.failed += row.failed
        self.completed += not row.failed
        self.output_tokens += row.output_tokens

    def describe(self, seconds: float) -> str:
        """One line for people."""
        rate = self.output_tokens / seconds if seconds > 0 else 0.0
        return (
            f"{self.completed} rows completed, {self.failed} failed, {self.skipped} skipped; "
            f"{self.output_tokens} output tokens in {seconds:.1f} s ({rate:.1f} tokens/s)"
        )


async def _print_stream(stream: OutputStream) -> None:
    """Print an output as it comes.

    Raises:
        MillstreamError: the engine could not finish it.
    """
    text = ""
    async for output in stream:
        text = output.text or text
        print(output.text, end="", flush=True)
    if not text.endswith("\n"):
        print(flush=True)
    if stream.error is not None:
        raise MillstreamError(stream.error)


def _print_stats(streams: Sequence[OutputStream]) -> None:
    from psutil import Process

    firsts = [stream.times.first_token for stream in streams if stream.times.first_token is not None]
    ends = [stream.times.last_token for stream in streams if stream.times.last_token is not None]
    tokens = sum(stream.num_output_tokens for stream in streams)
    start = min(stream.times.arrival for stream in streams)
    now_epoch, now = time(), monotonic()
    since_command = min(firsts) - (now - (now_epoch - Process().create_time()))
    print(
        f"first token after {since_command:.2f} s, {min(firsts) - start:.3f} s of it since the request; "
        f"{tokens} output tokens, {tokens / max(max(ends) - start, 1e-9):.1f} tokens/s; "
        f"{sum(stream.num_cached_tokens for stream in streams)} prompt tokens cached",
        file=sys.stderr,
    )


def _one_line(text: str, width: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
