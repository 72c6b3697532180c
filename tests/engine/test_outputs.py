"""Text output: stop strings against a naive search, hold-back, stop tokens."""

from hypothesis import given
from hypothesis import strategies as st

from millstream.backends.fake import CharacterTokenizer
from millstream.engine.output_stream import OutputStream
from millstream.engine.outputs import OutputState, StopStrings
from millstream.scheduler import Request, SamplingParams

words = st.text(alphabet="ab", min_size=1, max_size=4)


@given(
    text=st.text(alphabet="abc", max_size=30), stops=st.lists(words, min_size=1, max_size=3), data=st.data()
)
def test_stop_strings_agree_with_a_search_of_the_whole_text(text, stops, data):
    include = data.draw(st.booleans())
    matcher = StopStrings(stops, include_stop=include)
    shown, seen = "", 0
    while seen < len(text) and matcher.found is None:
        size = data.draw(st.integers(1, 3))
        shown += matcher.push(text[seen : seen + size])
        seen += size
        if matcher.found is None:
            assert text.startswith(shown)
            assert not any(stop in shown for stop in stops)
    seen_text = text[:seen]
    places = [seen_text.find(stop) for stop in stops if stop in seen_text]
    if not places:
        assert matcher.found is None
        assert shown + matcher.flush() == text
    else:
        where = min(places)
        assert matcher.found is not None
        assert seen_text.startswith(matcher.found, where)
        assert shown == seen_text[: where + (len(matcher.found) if include else 0)]


def text_of(tokens, **params):
    """OutputState text of a request whose worker gives these tokens."""
    request = Request(
        1,
        [1],
        SamplingParams(**params),
        seed=0,
        max_tokens=1 + len(tokens),
        cache_root=b"",
        eos_token_ids=(94,),
    )
    output = OutputState(request, OutputStream(num_prompt_tokens=1), CharacterTokenizer(200, (94,)).stream())
    text = ""
    for token in tokens:
        request.finish_reason = request.advance(token)
        text += output.text_of(token)
        if request.finish_reason is not None or output.stop_found is not None:
            break
    return text + output.rest()


ABC = [ord(c) - 32 for c in "abcde"]


def test_stop_tokens_are_hidden_unless_included():
    assert text_of(ABC, stop_token_ids=(ABC[2],)) == "ab"
    assert text_of(ABC, stop_token_ids=(ABC[2],), include_stop_in_output=True) == "abc"
    assert text_of([*ABC[:2], 94, *ABC]) == "ab"
    assert text_of(ABC, stop_words_ids=((ABC[1], ABC[2]),)) == "abc"


def test_stop_strings_are_kept_out_unless_included_and_wait_for_the_minimum():
    assert text_of(ABC, stop=("cd",)) == "ab"
    assert text_of(ABC, stop=("cd",), include_stop_in_output=True) == "abcd"
    assert text_of(ABC, stop=("ef",)) == "abcde"
    assert text_of(ABC * 2, stop=("bc",), min_new_tokens=5) == "abcdea"
