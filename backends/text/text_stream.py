"""Token ids to text: a whole list at once, or one token at a time with the same result."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ...errors import InvalidArgument
from ..worker import TextStream

_LOCAL = frozenset(
    {
        "BPEDecoder",
        "ByteFallback",
        "ByteLevel",
        "Fuse",
        "Metaspace",
        "Replace",
        "Sequence",
        "Strip",
        "WordPiece",
    }
)
"""Decoders whose output for a token depends on its neighbours only as DecodeStream and LocalStream expect."""


class TextDecoder:
    """Decodes the ids of one tokenizer. Constant after it is made, so safe to use from several threads.

    `vocab_size` is the number of ids the model may produce; it is often larger than the tokenizer's own
    vocabulary, because models pad their embedding. Ids without a token of their own have no text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int = 0) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = max(
            [vocab_size, tokenizer.get_vocab_size(), *(token_id + 1 for token_id in added)]
        )
        kinds = _decoder_kinds(tokenizer)
        self._byte_ids = _byte_ids(tokenizer) if "ByteFallback" in kinds else frozenset()
        after_fuse = kinds[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
        self._is_local = _LOCAL.issuperset(kinds) and "Replace" not in after_fuse

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InvalidArgument: an id lies outside of the vocabulary.
        """
        ids = list(token_ids)
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            raise self._outside(next(i for i in ids if not 0 <= i < self.vocab_size))
        # A batch lets go of the interpreter's lock, which `decode` holds for all ids.
        text: str = self._tokenizer.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]
        return text

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new incremental decoder."""
        kind = LocalStream if self._is_local else HeldStream
        return kind(self, skip_special_tokens)

    def is_silent(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether decoding passes over the id: a special token that is skipped, or a gap of the vocabulary.

        Raises:
            InvalidArgument: the id lies outside of the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise self._outside(token_id)
        if skip_special_tokens and token_id in self._special:
            return True
        return self._tokenizer.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        """Whether the token stands for one byte of a character that the vocabulary lacks."""
        return token_id in self._byte_ids

    def step(self, state: DecodeStream, token_ids: list[int]) -> str | None:
        """Feed `token_ids` to `state`; None while nothing new is certain."""
        fed = token_ids[0] if len(token_ids) == 1 else token_ids  # a bare id is twice as fast
        text: str | None = state.step(self._tokenizer, fed)
        return text

    def _outside(self, token_id: int) -> InvalidArgument:
        return InvalidArgument("token_ids", token_id, f"ids of the vocabulary, 0 to {self.vocab_size - 1}")


class LocalStream:
    """Incremental decoding with a window of the last few tokens.

    DecodeStream, which re-decodes that window, is exact for every local decoder but ByteFallback: there a
    whole run of byte tokens turns into U+FFFD as soon as one byte of it is wrong, so no byte of a run is
    certain before the run ends. Runs are held back and fed together with the token that ends them.
    """

    def __init__(self, decoder: TextDecoder, skip_special_tokens: bool) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._state = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._run: list[int] = []
        """The byte tokens at the end of `_ids` that have not been fed yet."""
        self._emitted = 0
        """Characters given out so far."""
        self._is_behind = False
        """Some of `_ids` may have text that has not been given out."""

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token.

        Raises:
            InvalidArgument: the id lies outside of the vocabulary.
        """
        if self._decoder.is_silent(token_id, self._skip):
            return ""
        self._ids.append(token_id)
        self._run.append(token_id)
        if self._decoder.is_byte(token_id):
            self._is_behind = True
            return ""
        text = self._decoder.step(self._state, self._run)
        self._run.clear()
        self._is_behind = text is None
        if text is None:
            return ""
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        """Text still held back; a second call gives nothing."""
        if not self._is_behind:
            return ""
        self._is_behind = False
        text = self._decoder.decode(self._ids, skip_special_tokens=self._skip)[self._emitted :]
        self._emitted += len(text)
        return text


class HeldStream:
    """For decoders where a later token can change any earlier text: nothing is certain before the end."""

    def __init__(self, decoder: TextDecoder, skip_special_tokens: bool) -> None:
        self._decoder = decoder
        self._skip = skip_special_tokens
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        """Keep the token; gives no text.

        Raises:
            InvalidArgument: the id lies outside of the vocabulary.
        """
        if not self._decoder.is_silent(token_id, self._skip):
            self._ids.append(token_id)
        return ""

    def flush(self) -> str:
        """The whole text; a second call gives nothing."""
        text = self._decoder.decode(self._ids, skip_special_tokens=self._skip)
        self._ids = []
        return text


def _decoder_kinds(tokenizer: Tokenizer) -> list[str]:
    """Type names of the decoder and of the decoders inside it, in the order they run."""
    if tokenizer.decoder is None:
        return []

    def walk(node: dict[str, Any]) -> list[str]:
        return [node["type"], *(kind for inner in node.get("decoders", ()) for kind in walk(inner))]

    return walk(json.loads(tokenizer.decoder.__getstate__()))


def _byte_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the tokens `<0x00>` to `<0xFF>`, in either case."""
    names = {f"<0x{byte:{form}}>" for byte in range(256) for form in ("02X", "02x")}
    ids = (tokenizer.token_to_id(name) for name in names)
    return frozenset(token_id for token_id in ids if token_id is not None)
