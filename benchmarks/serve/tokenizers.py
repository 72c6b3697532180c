"""The tokenizer that prompts are made and counted with, found without asking anybody for it."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...backends.models.discovery import locate
from ...backends.registry import choose_backend, inspect_model
from ...backends.worker import TextStream, Tokenizer
from ...errors import InvalidArgument, ModelError, NotSupported


class KnownTokenizer(msgspec.Struct, frozen=True):
    """A model's tokenizer, by what name it was found, and how many ids it has."""

    name: str
    tokenizer: Tokenizer
    vocab_size: int


def load_tokenizer(name: str) -> KnownTokenizer:
    """The tokenizer that the user named; a hub id is downloaded.

    Raises:
        ModelNotFound, ModelFormatError, NotSupported: there is none.
    """
    backend, info = inspect_model(name)
    return KnownTokenizer(name, backend.load_tokenizer(info), info.vocab_size)


def find_tokenizer(names: Iterable[str]) -> KnownTokenizer | None:
    """The tokenizer of the first model that is on this machine: bundled, a path, or in the hub's cache."""
    for name in names:
        try:
            path = locate(name, offline=True)
            backend = choose_backend(path)
            info = backend.inspect(name, path)
            return KnownTokenizer(name, backend.load_tokenizer(info), info.vocab_size)
        except (InvalidArgument, ModelError, NotSupported):
            continue
    return None


class WithoutTemplate:
    """A tokenizer that leaves the chat template to the server, and remembers texts; implements Tokenizer."""

    chat_template: str | None = None
    chat_template_names: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, *, add_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._texts: dict[tuple[int, ...], str] = {}
        self.eos_token_ids = tokenizer.eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with special ones around them only if both sides want them."""
        special = add_special_tokens and self._add_special_tokens
        token_ids = self._tokenizer.encode(text, add_special_tokens=special)
        self._texts[tuple(token_ids)] = text
        return token_ids

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens in `text`."""
        return self._tokenizer.fewest_tokens(text)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text that was encoded to these ids; decoding would not bring back what a normaliser changed."""
        return self._texts[tuple(token_ids)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder."""
        return self._tokenizer.stream(skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """There is none."""
        raise NotSupported("the server applies the chat template")


class CodePoints:
    """Carries texts through as they are, where no tokenizer is known; implements Tokenizer."""

    chat_template: str | None = None
    chat_template_names: tuple[str, ...] = ()
    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's code points."""
        return [ord(character) for character in text]

    def fewest_tokens(self, text: str) -> int:
        """The number itself."""
        return len(text)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text with these code points."""
        return "".join(map(chr, token_ids))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text with these code points."""
        return self.text_of(token_ids)

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """Nothing is generated in code points."""
        raise NotSupported("code points are no tokens")

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **kwargs: Any
    ) -> str:
        """There is none."""
        raise NotSupported("code points have no chat template")
