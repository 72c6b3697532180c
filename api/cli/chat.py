"""`millstream chat`: a conversation at the terminal, or through pipes."""

import argparse
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

from ...engine import Engine, FinishReason, ModelConfig
from ...errors import InvalidArgument, LimitExceeded, MillstreamError
from ..models import Model
from .options import add_engine_flags, add_model_argument, add_sampling_flags, model_config, sampling_fields
from .running import PromptMaker
from .terminal import interrupt_at_once, loading_line

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `chat`."""
    add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    config = model_config(options)
    fields = sampling_fields(options)
    with Engine() as engine:
        with interrupt_at_once(), loading_line(config.installed_name) as progress:
            engine.install_model(config)
            conversation = Conversation(engine, config, fields, options.system)
            engine.start_model(config.installed_name, progress=progress)
        _talk(conversation, sys.stdin.isatty())
    return 0


def _talk(conversation: "Conversation", interactive: bool) -> None:
    if interactive:
        print(f"{conversation.name}: {_HELP}", file=sys.stderr)
    for line in _lines(interactive):
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/reset":
                conversation.reset()
            case "/help":
                print(_HELP, file=sys.stderr)
            case text:
                _answer(conversation, text)


def _answer(conversation: "Conversation", text: str) -> None:
    try:
        with closing(conversation.say(text)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
    except LimitExceeded as error:
        print(f"{error}; /reset starts anew", file=sys.stderr)


def _lines(interactive: bool) -> Iterator[str]:
    """What the user says, until the end of input."""
    if not interactive:
        yield from sys.stdin
        return
    try:
        import readline  # noqa: F401  gives input() its line editing and history
    except ImportError:
        print("no line editing here", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


class Conversation:
    """The messages so far, and a running model that answers them."""

    def __init__(
        self, engine: Engine, config: ModelConfig, sampling: Mapping[str, Any], system: str | None
    ) -> None:
        """The model is installed, but need not run before something is said.

        Raises:
            NotSupported: the model has no chat template.
            InvalidArgument: a sampling value is out of range, or more than one output is asked for.
        """
        model = Model(engine, config)
        self.name = model.name
        self._engine = engine
        self._maker = PromptMaker(model.handler, chat=True, system=system)
        self._maker.from_messages([{"role": "user", "content": "?"}])
        self._params = model.sampling_params(sampling)
        for name, value, allowed in (
            ("n", self._params.n, 1),
            ("logprobs", self._params.logprobs, False),
            ("prompt_logprobs", self._params.prompt_logprobs, None),
        ):
            if value != allowed:
                raise InvalidArgument(name, value, f"{allowed} in a conversation")
        self._messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._messages.clear()

    def say(self, text: str) -> Generator[str]:
        """The pieces of the answer, as they come; an answer that is not read to its end is stopped.

        What was said and the answer, as far as it came, belong to the conversation afterwards.

        Raises:
            LimitExceeded: the conversation is longer than the model can take; it is as it was before.
            MillstreamError: the engine could not finish the answer.
        """
        prompt = self._maker.from_messages([*self._messages, {"role": "user", "content": text}])
        handle, stream = self._engine.start_request(self.name, prompt, self._params)
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            ended = False
            while not ended:
                output = stream.get()
                pieces.append(output.text)
                yield output.text
                ended = output.finish_reason is not None
        finally:
            self._engine.release_request(self.name, handle)
            self._messages.append({"role": "assistant", "content": "".join(pieces)})
        if stream.finish_reason is FinishReason.ERROR:
            raise MillstreamError(stream.error or "the answer could not be finished")
