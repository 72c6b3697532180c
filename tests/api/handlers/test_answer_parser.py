import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.api.handlers import ReasoningSplitter, ReasoningTags
from millstream.api.handlers.answer_parser import AnswerParser, ReasoningTokens

TAGS = ReasoningTags("<think>", "</think>")


class Letters:
    """Token i is the i-th piece."""

    def __init__(self, pieces):
        self._pieces = pieces

    def push(self, token_id):
        return self._pieces[token_id]

    def flush(self):
        return ""


def counted(pieces, *, opened=False, splits=()):
    tokens = ReasoningTokens(ReasoningSplitter(TAGS, opened=opened), Letters(pieces))
    ids = list(range(len(pieces)))
    for begin, end in zip((0, *splits), (*splits, len(pieces)), strict=True):
        tokens.push(ids[begin:end])
    return tokens.count, tokens.content_begun


@pytest.mark.parametrize(
    ("pieces", "opened", "expected"),
    [
        (["<think>", "a", "</think>", "b"], False, (3, True)),
        (["<th", "ink>", "a", "</", "think>", "\n\n", "b", "c"], False, (6, True)),
        (["a", "</think>", "b"], True, (2, True)),
        (["<think>", "a", "b"], False, (3, False)),
        (["<", "b", "c"], False, (0, True)),
        ([" ", "<think>", "a"], False, (3, False)),
        (["b", "<think>", "a", "</think>"], False, (0, True)),
        (["<think>", "a</think>b", "c"], False, (2, True)),
        ([], False, (0, False)),
    ],
)
def test_tokens_are_counted_by_the_side_of_their_text(pieces, opened, expected):
    assert counted(pieces, opened=opened) == expected


@given(st.integers(0, 8), st.integers(0, 8))
def test_the_count_does_not_depend_on_the_reads(first, second):
    pieces = ["<th", "ink>", "a", "</", "think>", "\n\n", "b", "c"]
    assert counted(pieces, splits=sorted((first, second))) == (6, True)


def test_without_reasoning_all_is_content():
    tokens = ReasoningTokens(None, Letters(["<think>"]))
    tokens.push([0])
    assert (tokens.count, tokens.content_begun) == (0, True)
    assert AnswerParser(None).push("<think>", ended=False).content == "<think>"


def test_the_last_piece_brings_what_was_held_back():
    parser = AnswerParser(ReasoningSplitter(TAGS))
    assert parser.push("<think>a</th", ended=False).reasoning == "a"
    assert parser.push("", ended=True).reasoning == "</th"
