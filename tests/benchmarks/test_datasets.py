"""Data sets: the lengths asked for, the same prompts for a seed, and clear refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from millstream.backends.bundled import PYHELP
from millstream.backends.fake import CharacterTokenizer
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.benchmarks.datasets import (
    Prompt,
    custom_prompts,
    plain_token_ids,
    prefix_repetition_prompts,
    random_prompts,
    sharegpt_prompts,
)
from millstream.errors import InvalidArgument

VOCAB = range(3, 1000)
PLAIN = CharacterTokenizer(1000)


def test_random_prompts_have_the_lengths_asked_for() -> None:
    prompts = random_prompts(VOCAB, 20, input_len=30, output_len=7, prefix_len=5)
    assert {len(prompt.token_ids) for prompt in prompts} == {35}
    assert {prompt.output_len for prompt in prompts} == {7}
    assert len({tuple(prompt.token_ids[:5]) for prompt in prompts}) == 1
    assert len({tuple(prompt.token_ids[5:]) for prompt in prompts}) == 20
    assert all(token in VOCAB for prompt in prompts for token in prompt.token_ids)


def test_random_lengths_vary_to_both_sides() -> None:
    prompts = random_prompts(VOCAB, 300, input_len=20, output_len=10, range_ratio=0.5)
    inputs = {len(prompt.token_ids) for prompt in prompts}
    outputs = {prompt.output_len for prompt in prompts}
    assert (min(inputs), max(inputs)) == (10, 30)
    assert (min(outputs), max(outputs)) == (5, 15)


def test_a_seed_gives_the_same_prompts() -> None:
    def make(seed: int) -> list[Prompt]:
        return random_prompts(VOCAB, 5, input_len=9, output_len=3, range_ratio=0.3, seed=seed)

    assert make(1) == make(1)
    assert make(1) != make(2)


@pytest.mark.parametrize(
    "settings",
    [
        {"input_len": 0},
        {"input_len": -1},
        {"output_len": 0},
        {"range_ratio": 1.0},
        {"range_ratio": -0.1},
        {"prefix_len": -1},
        {"input_len": 1, "range_ratio": 0.9},
    ],
)
def test_random_lengths_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        random_prompts(VOCAB, 3, **{"input_len": 5, "output_len": 5, **settings})


def test_prefixes_are_repeated() -> None:
    prompts = prefix_repetition_prompts(
        VOCAB, 23, prefix_len=8, suffix_len=4, num_prefixes=5, output_len=2, seed=3
    )
    assert len(prompts) == 20
    prefixes = [tuple(prompt.token_ids[:8]) for prompt in prompts]
    assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [4] * 5
    assert len({tuple(prompt.token_ids) for prompt in prompts}) == 20
    assert prefixes != sorted(prefixes)
    with pytest.raises(InvalidArgument, match="num-prefixes"):
        prefix_repetition_prompts(VOCAB, 3, num_prefixes=4)


def test_custom_prompts(tmp_path: Path) -> None:
    path = tmp_path / "custom.jsonl"
    path.write_text('{"prompt": "ab", "output_tokens": 3}\n\n{"prompt": "cde", "output_tokens": 4, "x": 1}\n')
    prompts = custom_prompts(path, PLAIN, 2, output_len=None)
    assert sorted((len(prompt.token_ids), prompt.output_len) for prompt in prompts) == [(2, 3), (3, 4)]
    assert {prompt.output_len for prompt in custom_prompts(path, PLAIN, 2, output_len=9)} == {9}
    assert len(custom_prompts(path, PLAIN, 1, output_len=None)) == 1
    assert len(custom_prompts(path, PLAIN, 7, output_len=None)) == 7


def test_custom_prompts_go_through_the_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "custom.jsonl"
    path.write_text('{"prompt": "What is zip?"}\n')
    tokenizer = HFTokenizer.from_folder(PYHELP)
    (prompt,) = custom_prompts(path, tokenizer, 1, output_len=5)
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=False).startswith("<|im_start|>user\n")


@pytest.mark.parametrize("content", ["", "{}", '{"prompt": "a"}', '{"prompt": "a", "output_tokens": 0}', "["])
def test_custom_files_that_cannot_be_used(content: str, tmp_path: Path) -> None:
    path = tmp_path / "custom.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidArgument):
        custom_prompts(path, PLAIN, 2, output_len=None)


def conversation(*turns: str) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": "human", "value": turn} for turn in turns]}


def test_sharegpt_prompts(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    usable = [conversation("question one", "answer"), conversation("question", "a longer answer", "more")]
    unusable = [
        conversation("only a question"),
        conversation("hi", "too short a question"),
        conversation("too short an answer", "no"),
        conversation("x" * 1025, "too long a question"),
        conversation("y" * 1000, "x" * 1100),
        {"id": "no turns"},
    ]
    path.write_text(json.dumps([*unusable, *usable]))
    prompts = sharegpt_prompts(path, PLAIN, 2, output_len=None)
    assert sorted((len(prompt.token_ids), prompt.output_len) for prompt in prompts) == [(8, 15), (12, 6)]
    assert {prompt.output_len for prompt in sharegpt_prompts(path, PLAIN, 5, output_len=20)} == {20}


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "[1]"])
def test_sharegpt_files_that_cannot_be_used(content: str, tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    path.write_text(content)
    with pytest.raises(InvalidArgument):
        sharegpt_prompts(path, PLAIN, 2, output_len=None)


def test_made_up_prompts_hold_no_end_of_sequence() -> None:
    assert plain_token_ids(CharacterTokenizer(5, (1, 3)), 5) == [0, 2, 4]
