"""TextBound: never more than the tokens that a text really has, and near them where it can be."""

import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from millstream.backends.text.text_bound import TextBound

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("Ġ", "Ġ"), ("ab", "ab"), ("ĠĠ", "ĠĠ")]


def byte_level(normalizer=None, added=()):
    tokens = [*ALPHABET, *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens(list(added))
    return tokenizer


def byte_fallback():
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "ab", "<unk>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("a", "b")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def with_unknown(fuse_unk):
    vocab = {"a": 0, "b": 1, "<unk>": 2}
    return Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=fuse_unk))


MASK = AddedToken("<mask>", lstrip=True, rstrip=True, special=True)
BOUNDED = {
    "byte level": byte_level(),
    "NFC": byte_level(normalizers.NFC()),
    "NFKC and lower case": byte_level(normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "stripped": byte_level(normalizers.Strip()),
    "a token that takes the blanks beside it": byte_level(added=[MASK]),
    "byte fallback": byte_fallback(),
    "unknown characters": with_unknown(fuse_unk=False),
}
pieces = st.sampled_from(
    ["ab", " ", "<mask>", "\u212a", "\u1fbe\u0308\u0301", "e\u0301", "\U0001d400", "\u3000"]
)
texts = st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)


@pytest.mark.parametrize("kind", BOUNDED)
@given(texts)
@settings(deadline=None)
def test_a_text_never_has_fewer_tokens(kind, text):
    tokenizer = BOUNDED[kind]
    assert TextBound(tokenizer).fewest_tokens(text) <= len(
        tokenizer.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    ("kind", "text", "least"),
    [
        ("byte level", "abab" * 1000, 1000),
        ("byte level", "é" * 1000, 500),
        ("NFC", "abab" * 1000, 1000),
        ("NFC", "é" * 1000, 125),
        ("a token that takes the blanks beside it", "x" * 10_000 + " " * 10_000, 1600),
        ("byte fallback", "ab" * 1000, 300),
        ("unknown characters", "ab" * 1000, 400),
    ],
)
def test_a_long_text_has_many(kind, text, least):
    assert TextBound(BOUNDED[kind]).fewest_tokens(text) >= least


@pytest.mark.parametrize(
    "tokenizer",
    [
        with_unknown(fuse_unk=True),
        Tokenizer(models.BPE({"a": 0}, [])),
        Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
        byte_level(normalizers.StripAccents()),
        byte_level(normalizers.Replace(Regex("a+"), "a")),
        byte_level(normalizers.Replace("aaaa", "a")),
        byte_level(normalizers.Replace("a", "")),
    ],
    ids=["joined unknown", "dropped", "words", "whole words", "accents", "expression", "shorter", "removed"],
)
def test_there_is_no_bound_where_one_token_may_be_any_text(tokenizer):
    assert TextBound(tokenizer).fewest_tokens("a" * 10_000) == 0


def test_removed_separators_leave_no_bound():
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert TextBound(tokenizer).fewest_tokens("x" * 10_000) == 0


@pytest.mark.parametrize(("form", "most"), [("NFC", 4), ("NFD", 4), ("NFKC", 4), ("NFKD", 4)])
def test_composition_makes_at_most_four_bytes_one(form, most):
    """The table in TextBound: over all characters, each with the longest ones that it may be composed of."""
    longest = {}
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for character in characters:
        apart = unicodedata.normalize("NFKD" if "K" in form else "NFD", character)
        if len(apart) == 1:
            longest[apart] = max(longest.get(apart, 0), len(character.encode()))
    for character in characters:
        if unicodedata.normalize(form, character) == character:
            parts = unicodedata.normalize("NFD", character)
            size = sum(max(longest.get(part, 0), len(part.encode())) for part in parts)
            assert size <= most * len(character.encode())
    assert unicodedata.normalize(form, string.printable) == string.printable
