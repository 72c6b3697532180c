"""The table of sampling fields: it is complete, it checks, and it reads what JSON has for a field."""

import pytest

from millstream.errors import InvalidArgument
from millstream.scheduler import SamplingParams
from millstream.scheduler.sampling_fields import MAX_SEED, SAMPLING_FIELDS, read_sampling_fields


def test_the_table_has_the_fields_of_sampling_params_in_their_order() -> None:
    assert tuple(field.name for field in SAMPLING_FIELDS) == SamplingParams.__struct_fields__


def test_no_name_stands_for_two_fields() -> None:
    names = [name for field in SAMPLING_FIELDS for name in (field.name, *field.wire_names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("field", SAMPLING_FIELDS, ids=lambda field: field.name)
def test_values_of_another_kind_are_refused_by_name(field) -> None:
    with pytest.raises(InvalidArgument, match=rf"{field.name} is <object"):
        SamplingParams(**{field.name: object()})
    if field.optional:
        SamplingParams(**{field.name: None})
    else:
        with pytest.raises(InvalidArgument, match=f"{field.name} is None"):
            SamplingParams(**{field.name: None})


@pytest.mark.parametrize(
    ("name", "inside", "outside", "allowed"),
    [
        ("n", (1, 128), (0, 129), "1 to 128"),
        ("temperature", (0, 100.0), (-0.1, 100.1), r"0 \(greedy\) to 100"),
        ("top_k", (0, 10**9), (-1,), r"0 \(all tokens\) or more"),
        ("top_p", (0, 1.0), (-0.1, 1.1), "0 to 1"),
        ("min_p", (0.0, 1), (-0.1, 1.1), "0 to 1"),
        ("repetition_penalty", (0.01, 2), (0, 2.1), "above 0 to 2"),
        ("presence_penalty", (-2, 2), (-2.1, 2.1), "-2 to 2"),
        ("frequency_penalty", (-2, 2), (-2.1, 2.1), "-2 to 2"),
        ("no_repeat_ngram_size", (0, 4), (-1,), r"0 \(off\) or more"),
        ("seed", (0, MAX_SEED), (-1, MAX_SEED + 1), f"0 to {MAX_SEED}, or None"),
        ("max_new_tokens", (1, 10**6), (0,), "1 or more, or None"),
        ("max_length", (1, 10**6), (0,), "1 or more, or None"),
        ("min_new_tokens", (0, 4), (-1,), "0 or more"),
        ("min_length", (0, 4), (-1,), "0 or more"),
        ("prompt_logprobs", (0, 20), (-1, 21), "0 to 20, or None"),
    ],
)
def test_bounds(name, inside, outside, allowed) -> None:
    for value in inside:
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in outside:
        with pytest.raises(InvalidArgument, match=f"{name} is {value}; allowed: {allowed}$"):
            SamplingParams(**{name: value})


def test_forms_of_json_become_what_sampling_takes() -> None:
    given = {
        "stop": "a",
        "stop_token_ids": [3],
        "stop_words_ids": [[1, 2]],
        "logit_bias": {"7": -1},
        "top_k": -1,
        "seed": -1,
        "min_tokens": 2,
        "max_tokens": 9,
        "include_stop_str_in_output": True,
    }
    params = SamplingParams(**read_sampling_fields(given))
    assert params == SamplingParams(
        stop=("a",),
        stop_token_ids=(3,),
        stop_words_ids=((1, 2),),
        logit_bias={7: -1},
        seed=MAX_SEED,
        min_new_tokens=2,
        max_new_tokens=9,
        include_stop_in_output=True,
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias is"),
        ({"logit_bias": {"7": 101}}, "values from -100 to 100"),
        ({"stop": ["a", ""]}, "stop is"),
        ({"bad_words_ids": [[]]}, "bad_words_ids is"),
        ({"seed": 2**64}, "seed is"),
    ],
)
def test_what_cannot_be_read_is_refused_as_it_was_written(given, told) -> None:
    with pytest.raises(InvalidArgument, match=told):
        SamplingParams(**read_sampling_fields(given))


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(InvalidArgument, match=r"'temprature'.*did you mean temperature\?"):
        read_sampling_fields({"temprature": 1.0})
    with pytest.raises(InvalidArgument, match="'frobnicate'; allowed: one of n, temperature"):
        read_sampling_fields({"frobnicate": 1.0})


def test_two_names_of_one_field_must_agree() -> None:
    assert read_sampling_fields({"max_tokens": 3, "max_new_tokens": 3}) == {"max_new_tokens": 3}
    with pytest.raises(InvalidArgument, match="max_new_tokens is 4"):
        read_sampling_fields({"max_tokens": 3, "max_new_tokens": 4})
