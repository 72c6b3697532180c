"""TextBound: how few tokens a text can become, from its bytes and the parts of its tokenizer."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel

from .byte_count import count_bytes

_COMPOSES = {"NFC": 4, "NFKC": 4, "NFD": 4, "NFKD": 4, "Lowercase": 3}
"""Normalizers to the most bytes of a text that they make one byte of; none of them makes two ASCII characters
one, or drops one."""
_GROWS = frozenset({"Prepend", "ByteLevel"})
"""Normalizers that only add bytes."""
_KEEPS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation"})
"""Pre-tokenizers that cut a text and drop nothing of it, unless their behaviour is to remove."""
_DROPS_BLANKS = frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer"})
_UNKNOWN_CHARACTER = 4
"""Bytes of a character that becomes the unknown token."""


class TextBound:
    """A lower bound of the number of a text's tokens, for pipelines of which every part is known.

    A token stands for at most as many bytes as the longest one of the vocabulary has; parts that shorten a
    text before that, or take blanks out of it, are counted with the most that they can take. Where a part may
    make any text short (an unknown word is one token, a regular expression is replaced), the bound is 0.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Nothing is computed before the first text."""
        self._tokenizer = tokenizer

    def fewest_tokens(self, text: str) -> int:
        """No encoding of `text` has fewer tokens."""
        longest, shrinks = self._longest_token, self._shrinks
        if longest is None or shrinks is None:
            return 0
        return -(-count_bytes(text, without_blanks=self._drops_blanks, shrinks=shrinks) // longest)

    @cached_property
    def _longest_token(self) -> int | None:
        """Bytes of the longest token; None where one token may stand for any number of bytes."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if _kinds(self._tokenizer.normalizer, "ByteLevel") or _kinds(
            self._tokenizer.pre_tokenizer, "ByteLevel"
        ):
            # Every byte is a character of the alphabet here, also in tokens.
            longest = max(map(len, vocab), default=0)
            longest = max(longest, *(len(token.encode()) for token in self._added_texts()), 1)
            covered = set(ByteLevel.alphabet()) <= vocab.keys()
        else:
            longest = max((len(token.encode()) for token in vocab), default=0)
            covered = _has_byte_fallback(self._tokenizer.model) and all(
                f"<0x{byte:02X}>" in vocab for byte in range(256)
            )
        if covered:
            return longest
        model = self._tokenizer.model
        # Unknown characters that are neither dropped nor joined become a token each.
        if isinstance(model, BPE) and model.unk_token is not None and not model.fuse_unk:
            return max(longest, _UNKNOWN_CHARACTER)
        return None

    @cached_property
    def _shrinks(self) -> int | None:
        """The most bytes beyond ASCII that normalizers make one of; None where there is no such number."""
        most = 1
        for part in _parts(self._tokenizer.normalizer, "normalizers"):
            kind = part["type"]
            if kind in _COMPOSES:
                most *= _COMPOSES[kind]
            elif kind == "Replace":
                pattern, content = part["pattern"].get("String"), part["content"]
                # What shortens ASCII texts, too, is left alone.
                if pattern is None or len(pattern.encode()) > len(content.encode()):
                    return None
            elif kind not in _GROWS and kind != "Strip":
                return None
        for part in _parts(self._tokenizer.pre_tokenizer, "pretokenizers"):
            if part["type"] not in _KEEPS | _DROPS_BLANKS or part.get("behavior") == "Removed":
                return None
        return most

    @cached_property
    def _drops_blanks(self) -> bool:
        """Whether blanks may vanish: at the ends of a text, between words, or beside an added token."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        kinds = {part["type"] for part in _parts(self._tokenizer.pre_tokenizer, "pretokenizers")}
        return (
            any(token.lstrip or token.rstrip for token in added)
            or bool(kinds & _DROPS_BLANKS)
            or _kinds(self._tokenizer.normalizer, "Strip")
        )

    def _added_texts(self) -> Iterator[str]:
        return (token.content for token in self._tokenizer.get_added_tokens_decoder().values())


def _parts(component: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer; `inner` names those of a sequence in tokenizer.json."""
    if component is None:
        return
    yield from _flat(msgspec.json.decode(component.__getstate__()), inner)


def _flat(part: Mapping[str, Any], inner: str) -> Iterator[Mapping[str, Any]]:
    if part["type"] == "Sequence":
        for child in part[inner]:
            yield from _flat(child, inner)
    else:
        yield part


def _kinds(component: Any, kind: str) -> bool:
    inner = "normalizers" if "normalizer" in type(component).__module__ else "pretokenizers"
    return any(part["type"] == kind for part in _parts(component, inner))


def _has_byte_fallback(model: Any) -> bool:
    if isinstance(model, BPE):
        return bool(model.byte_fallback)
    if isinstance(model, Unigram):
        return bool(msgspec.json.decode(model.__getstate__()).get("byte_fallback", False))
    return False
