"""Prompts of the load generator: as text of the length asked for, as token ids, and from files."""

import json
from pathlib import Path

import numpy as np
import pytest

from millstream.backends.bundled import PYHELP
from millstream.backends.fake import CharacterTokenizer
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.benchmarks.datasets import plain_token_ids
from millstream.benchmarks.serve.prompts import (
    Ask,
    DataSet,
    Form,
    FromFile,
    PrefixRepetition,
    Random,
    Sonnet,
    fit_text,
    make_asks,
)
from millstream.benchmarks.serve.tokenizers import KnownTokenizer, WithoutTemplate, find_tokenizer
from millstream.errors import InvalidArgument

PYHELP_TOKENIZER = HFTokenizer.from_folder(PYHELP)
KNOWN = find_tokenizer(["./no/such/folder", "nobody/has-this", "pyhelp"])
PLAIN = KnownTokenizer("plain", CharacterTokenizer(1000), 1000)
TEXT, CHAT = Form(as_text=True, chat=False), Form(as_text=True, chat=True)
IDS = Form(as_text=False, chat=False)


def asks(dataset: DataSet, form: Form, known: KnownTokenizer | None = KNOWN, count: int = 8) -> list[Ask]:
    return make_asks(dataset, count, form, known, vocab_size=500, seed=1)


def test_the_tokenizer_of_a_model_on_this_machine_is_found() -> None:
    assert KNOWN is not None
    assert KNOWN.name == "pyhelp"
    assert KNOWN.tokenizer.encode("os.path") == PYHELP_TOKENIZER.encode("os.path")
    assert find_tokenizer(["nobody/has-this", ""]) is None


@pytest.mark.parametrize("form", [TEXT, CHAT])
def test_made_up_texts_have_the_length_asked_for(form: Form) -> None:
    for ask in asks(Random(input_len=40, output_len=7, prefix_len=20), form, count=60):
        assert isinstance(ask.prompt, str)
        assert ask.output_len == 7
        assert ask.prompt_len == 60
        assert len(PYHELP_TOKENIZER.encode(ask.prompt, add_special_tokens=not form.chat)) == 60


def test_made_up_texts_share_their_prefix() -> None:
    made = [str(ask.prompt) for ask in asks(Random(input_len=16, prefix_len=64), TEXT)]
    shortest = min(map(len, made))
    same = next(place for place in range(shortest) if len({text[place] for text in made}) > 1)
    assert len(PYHELP_TOKENIZER.encode(made[0][:same])) >= 48
    assert len(set(made)) == len(made)


def test_a_text_that_cannot_be_fitted_says_its_true_length() -> None:
    tokenizer = WithoutTemplate(CharacterTokenizer(1000), add_special_tokens=True)
    text, length = fit_text([1, 2, 3], range(1000), tokenizer, np.random.default_rng(0))
    assert length == len(text) == 3
    assert fit_text([], range(1000), tokenizer, np.random.default_rng(0)) == ("", 0)


def test_token_ids_need_no_tokenizer() -> None:
    made = asks(Random(input_len=30, output_len=9, range_ratio=0.5), IDS, None, 50)
    assert all(isinstance(ask.prompt, list) and max(ask.prompt) < 500 for ask in made)
    lengths = {ask.prompt_len for ask in made}
    assert min(lengths) >= 15 and max(lengths) <= 45 and len(lengths) > 5
    repeated = asks(PrefixRepetition(prefix_len=6, suffix_len=2, num_prefixes=2, output_len=3), IDS, None)
    assert len({tuple(ask.prompt[:6]) for ask in repeated}) == 2
    assert [(ask.prompt_len, ask.output_len) for ask in repeated] == [(8, 3)] * 8


def test_token_ids_leave_out_what_ends_an_answer() -> None:
    made = asks(Random(input_len=200), IDS)
    allowed = set(plain_token_ids(KNOWN.tokenizer, KNOWN.vocab_size))
    assert all(allowed.issuperset(ask.prompt) for ask in made)


def test_texts_of_a_file_reach_the_server_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "What is\\na list?"}\n{"prompt": "über – 🙂", "output_tokens": 5}\n')
    dataset = FromFile(kind="custom", path=path, output_len=4)
    for known in (KNOWN, None):
        made = asks(dataset, CHAT, known, 2)
        assert {ask.prompt for ask in made} == {"What is\na list?", "über – 🙂"}
        assert {ask.output_len for ask in made} == {4}
        assert all((ask.prompt_len is None) == (known is None) for ask in made)
    templated = asks(dataset, IDS, count=2)
    question = PYHELP_TOKENIZER.apply_chat_template([{"role": "user", "content": "What is\na list?"}])
    assert PYHELP_TOKENIZER.encode(question, add_special_tokens=False) in [ask.prompt for ask in templated]


def test_sharegpt_asks_for_as_much_as_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    turns = [{"value": "a question"}, {"value": "an answer"}]
    path.write_text(json.dumps([{"conversations": turns}]))
    made = asks(FromFile(kind="sharegpt", path=path), CHAT, PLAIN, 2)
    assert made == [Ask("a question", 10, 9)] * 2


def test_sonnet_fills_prompts_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("\n".join(f"line number {number:02} of the poem" for number in range(50)))
    made = asks(Sonnet(path=path, input_len=300, output_len=3, prefix_len=150), TEXT, PLAIN, 5)
    prompts = [str(ask.prompt) for ask in made]
    assert all(250 < len(prompt) <= 300 and prompt.startswith(prompts[0][:120]) for prompt in prompts)
    assert len(set(prompts)) == 5
    assert {(ask.prompt_len, ask.output_len) for ask in made} == {(len(prompts[0]), 3)}
    as_ids = asks(Sonnet(path=path, input_len=300, output_len=3, prefix_len=150), IDS, PLAIN, 1)
    assert as_ids[0].prompt == PLAIN.tokenizer.encode(prompts[0])


@pytest.mark.parametrize(
    ("dataset", "form", "known", "parameter"),
    [
        (Random(input_len=-1), IDS, None, "--random-input-len"),
        (Random(output_len=0), IDS, None, "--random-output-len"),
        (Random(prefix_len=-1), IDS, None, "--random-prefix-len"),
        (Random(range_ratio=1), IDS, None, "--random-range-ratio"),
        (Random(), TEXT, None, "--tokenizer"),
        (PrefixRepetition(num_prefixes=9), IDS, None, "--prefix-repetition-num-prefixes"),
        (FromFile(kind="custom", path=Path("rows"), output_len=0), TEXT, KNOWN, "--output-len"),
        (FromFile(kind="custom", path=Path("rows"), output_len=3), IDS, None, "--tokenizer"),
        (FromFile(kind="sharegpt", path=Path("rows")), TEXT, None, "--tokenizer"),
        (Sonnet(path=Path("poem")), TEXT, None, "--tokenizer"),
        (Sonnet(path=Path("poem"), input_len=100), TEXT, KNOWN, "--sonnet-input-len"),
        (Sonnet(path=Path("poem"), output_len=0), TEXT, KNOWN, "--sonnet-output-len"),
    ],
)
def test_what_cannot_be_made_is_refused(
    dataset: DataSet, form: Form, known: KnownTokenizer | None, parameter: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        asks(dataset, form, known)
    assert caught.value.parameter == parameter


def test_a_poem_has_to_have_lines_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes(b"\n\n")
    with pytest.raises(InvalidArgument, match="at least one line"):
        asks(Sonnet(path=path), TEXT)
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        asks(Sonnet(path=path), TEXT)
    path.write_text("word " * 3000)
    with pytest.raises(InvalidArgument, match="longest line"):
        asks(Sonnet(path=path), TEXT)
