"""Vocabulary: a GGUF file loaded into llama.cpp without its weights."""

import ctypes
import os
import re
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InvalidArgument, ModelFormatError
from .deep_stack import call_with_stack
from .library import error_lines, load_library

_MAX_TEXT = 1 << 22
"""Bytes; about a million tokens."""
_STACK_PER_BYTE = 1024
"""llama.cpp cuts texts into words by a regular expression that recurses for each character of a word; a stack
of 8 MiB holds half as many bytes of a word as this allows for."""
_SHORT_TEXT = 4096
"""Bytes for which any thread's stack is large enough."""
_ROLES = ("bos", "eos", "sep", "pad", "mask")
"""Named tokens that chat templates may use, as "bos_token" and so on."""
_REASON = re.compile(r"error loading model(?: \w+)*: ")


class Token(NamedTuple):
    """One entry of a vocabulary."""

    text: bytes
    """What it adds to a text; may be a part of a character."""
    is_special: bool
    """It steers the model and is no part of the text that people see."""


class Vocabulary:
    """Tokens, special tokens and kind of a model. Constant, so safe to use from several threads.

    llama.cpp's part of it is freed when this is collected.
    """

    def __init__(self, path: Path) -> None:
        """Load what is not weights from the file at `path`, the header of which has been checked.

        Raises:
            ModelFormatError: llama.cpp does not load such a model; says why.
            NotSupported: llama.cpp is not installed.
        """
        self._library = load_library()
        self._model = _load(self._library, path)
        finalizer = weakref.finalize(self, self._library.llama_model_free, self._model)
        finalizer.atexit = False  # a process that ends gives the memory back by itself
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self.path = path
        self.size: int = self._library.llama_vocab_n_tokens(self._vocab)
        self._tokens: list[Token | None] = [None] * self.size

    @property
    def has_tokens(self) -> bool:
        """False where the file says that it has no tokenizer; nothing but `size` is known then."""
        return bool(self._library.llama_vocab_type(self._vocab) != self._library.LLAMA_VOCAB_TYPE_NONE)

    @property
    def is_encoder(self) -> bool:
        """Whether the model reads its prompt with an encoder of its own, or has nothing else."""
        return bool(self._library.llama_model_has_encoder(self._model))

    @property
    def is_diffusion(self) -> bool:
        """Whether the model writes tokens in any order instead of one after the other."""
        return bool(self._library.llama_model_is_diffusion(self._model))

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text by llama.cpp's rules; the end-of-sequence token first."""
        library, vocab = self._library, self._vocab
        ends = [token_id for token_id in range(self.size) if library.llama_vocab_is_eog(vocab, token_id)]
        eos = library.llama_vocab_eos(vocab)
        return tuple(sorted(ends, key=lambda token_id: (token_id != eos, token_id)))

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Text of the named tokens: "bos_token", "eos_token" and others that there are.

        Where a file names none, llama.cpp takes what stood at that place in the first models of the kind;
        such a token counts only if it is special.
        """
        ids = {role: getattr(self._library, f"llama_vocab_{role}")(self._vocab) for role in _ROLES}
        found = {role: self.token(token_id) for role, token_id in ids.items() if token_id >= 0}
        return {
            f"{role}_token": token.text.decode(errors="replace")
            for role, token in found.items()
            if token.is_special
        }

    @property
    def lacks_added_tokens(self) -> bool:
        """Whether llama.cpp would look in vain for the tokens that it puts around a text."""
        library, vocab = self._library, self._vocab
        is_word_piece = library.llama_vocab_type(vocab) == library.LLAMA_VOCAB_TYPE_WPM
        begins = is_word_piece or library.llama_vocab_get_add_bos(vocab)
        ends = library.llama_vocab_get_add_eos(vocab)
        return bool(
            (begins and library.llama_vocab_bos(vocab) < 0)
            or (ends and library.llama_vocab_eos(vocab) < 0)
            or (is_word_piece and library.llama_vocab_sep(vocab) < 0)
        )

    @cached_property
    def longest_token(self) -> int | None:
        """Bytes of the longest token; None where one may stand for a text of any length.

        That is so where unknown words become one token, or a normalizer may take away what it likes.
        """
        library = self._library
        kept = (
            library.LLAMA_VOCAB_TYPE_SPM,
            library.LLAMA_VOCAB_TYPE_BPE,
            library.LLAMA_VOCAB_TYPE_RWKV,
        )
        if library.llama_vocab_type(self._vocab) not in kept:
            return None
        return max(1, *(len(self.token(token_id).text) for token_id in range(self.size)))

    def encode(self, text: bytes, *, add_special_tokens: bool) -> list[int]:
        """Token ids of UTF-8 `text`; special tokens in it become their ids.

        Raises:
            InvalidArgument: `text` is too long to be counted.
        """
        if len(text) > _MAX_TEXT:
            raise InvalidArgument("text", f"{len(text)} bytes long", f"at most {_MAX_TEXT} bytes")
        if len(text) <= _SHORT_TEXT:
            return self._tokenize(text, add_special_tokens)
        stack = len(text) * _STACK_PER_BYTE
        try:
            return call_with_stack(lambda: self._tokenize(text, add_special_tokens), stack)
        except MemoryError as error:
            raise InvalidArgument("text", f"{len(text)} bytes long", f"a shorter one: {error}") from error

    def _tokenize(self, text: bytes, add_special_tokens: bool) -> list[int]:
        room = len(text) + 2
        while True:
            ids = (ctypes.c_int32 * room)()
            count: int = self._library.llama_tokenize(
                self._vocab, text, len(text), ids, room, add_special_tokens, True
            )
            if count >= 0:
                return ids[:count]
            room = -count

    def token(self, token_id: int) -> Token:
        """The token with that id.

        Raises:
            InvalidArgument: the id lies outside of the vocabulary.
        """
        if not 0 <= token_id < self.size:
            raise InvalidArgument("token_ids", token_id, f"ids of the vocabulary, 0 to {self.size - 1}")
        token = self._tokens[token_id]
        if token is None:
            token = self._tokens[token_id] = self._read_token(token_id)
        return token

    def _read_token(self, token_id: int) -> Token:
        library, vocab = self._library, self._vocab
        special = library.LLAMA_TOKEN_ATTR_UNKNOWN | library.LLAMA_TOKEN_ATTR_CONTROL
        is_special = bool(library.llama_vocab_get_attr(vocab, token_id) & special)
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = library.llama_token_to_piece(vocab, token_id, buffer, room, 0, True)
            if count >= 0:
                return Token(buffer.raw[:count], is_special)
            room = -count


def _load(library: Any, path: Path) -> Any:
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    with error_lines() as lines:
        model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if model is None:
        reason = next(
            (line for line in lines if _REASON.search(line)), lines[0] if lines else "no reason given"
        )
        while found := _REASON.search(reason):
            reason = reason[found.end() :]
        raise ModelFormatError(f"{path} cannot be loaded by llama.cpp: {' '.join(reason.split())}")
    return model
