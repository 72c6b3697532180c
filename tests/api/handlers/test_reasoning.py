"""The splitter: any cutting of a text gives the same two parts, and nothing is lost."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.api.handlers import AnswerDelta, ReasoningSplitter, ReasoningTags

THINK = ReasoningTags("<think>", "</think>")
OTHER = ReasoningTags("[THINK]", "[/THINK]")

parts = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<thi",
        "nk>",
        "</",
        "<",
        ">",
        "\n",
        "\n\n",
        " ",
        "x",
        "answer",
        "ü€",
        "</thin",
        "k",
    ]
)
texts = st.lists(parts, max_size=12).map("".join)


def expected(text: str, opened: bool) -> AnswerDelta:
    """The same by regular expressions, over a whole text."""
    block = r"\n*(?P<reasoning>.*?)(?:(?P<end>\n*</think>\n*)(?P<content>.*))?"
    found = re.fullmatch(block if opened else r"\s*<think>" + block, text, re.DOTALL)
    if found is None:
        return AnswerDelta(content=text)
    return AnswerDelta(found["reasoning"], found["content"] or "")


@given(texts, st.lists(st.integers(0, 80), max_size=8), st.booleans())
def test_any_cutting_gives_what_the_whole_text_gives(text: str, cuts: list[int], opened: bool) -> None:
    whole = ReasoningSplitter(THINK, opened=opened).split(text)
    assert whole == expected(text, opened)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    splitter = ReasoningSplitter(THINK, opened=opened)
    pieces = [splitter.push(text[start:end]) for start, end in pairwise(places)]
    pieces.append(splitter.flush())
    assert splitter.flush() == AnswerDelta()
    assert "".join(piece.reasoning for piece in pieces) == whole.reasoning
    assert "".join(piece.content for piece in pieces) == whole.content


@given(texts, st.booleans())
def test_no_character_is_lost_or_doubled(text: str, opened: bool) -> None:
    whole = ReasoningSplitter(THINK, opened=opened).split(text)
    begin = r"\n*" if opened else r"(\s*<think>\n*)?"
    reasoning, content = re.escape(whole.reasoning), re.escape(whole.content)
    assert re.fullmatch(f"{begin}{reasoning}(\n*</think>\n*)?{content}", text)


@given(texts)
def test_only_what_may_belong_to_a_tag_is_held_back(text: str) -> None:
    splitter = ReasoningSplitter(THINK, opened=True)
    shown = ""
    for end in range(len(text)):
        shown += splitter.push(text[end]).reasoning
        if not splitter.in_reasoning:
            return
        held = text[: end + 1].lstrip("\n").removeprefix(shown)
        assert "</think>".startswith(held.lstrip("\n"))


def test_the_answer_comes_at_once_where_there_is_no_block() -> None:
    splitter = ReasoningSplitter(OTHER)
    assert not splitter.in_reasoning
    assert splitter.push(" ") == AnswerDelta()
    assert splitter.push("[TH") == AnswerDelta()
    assert splitter.push("E") == AnswerDelta(content=" [THE")
    assert splitter.push("[THINK]") == AnswerDelta(content="[THINK]")


def test_where_the_text_stands_is_known() -> None:
    splitter = ReasoningSplitter(OTHER)
    splitter.push("[THINK]")
    assert splitter.in_reasoning
    assert splitter.push("so[/THI") == AnswerDelta(reasoning="so")
    assert splitter.in_reasoning
    assert splitter.push("NK]\n\nyes") == AnswerDelta(content="yes")
    assert not splitter.in_reasoning


@pytest.mark.parametrize("opened", [True, False])
def test_an_unfinished_block_is_all_reasoning(opened: bool) -> None:
    text = "a\nb\n</thi"
    split = ReasoningSplitter(THINK, opened=opened).split(text if opened else "<think>" + text)
    assert split == AnswerDelta(reasoning=text)
