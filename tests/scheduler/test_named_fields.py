"""Records refuse unknown fields with the name that was meant, and know other names."""

import pytest

from millstream.engine import ModelConfig, RequestOptions
from millstream.errors import InvalidArgument
from millstream.scheduler import SamplingParams


@pytest.mark.parametrize(
    ("record", "wrong", "meant"),
    [
        (SamplingParams, "temprature", "temperature"),
        (RequestOptions, "tennant", "tenant"),
        (ModelConfig, "max_num_seq", "max_num_seqs"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(record, wrong, meant):
    with pytest.raises(
        InvalidArgument, match=rf"field of {record.__name__} is '{wrong}'.*did you mean {meant}"
    ):
        record(**{wrong: 1})


def test_max_tokens_is_another_name():
    assert SamplingParams(max_tokens=3) == SamplingParams(max_new_tokens=3)
    with pytest.raises(InvalidArgument, match="max_tokens is 3; allowed: nothing beside max_new_tokens"):
        SamplingParams(max_tokens=3, max_new_tokens=3)


def test_one_stop_string_needs_no_tuple():
    assert SamplingParams(stop="x") == SamplingParams(stop=["x"]) == SamplingParams(stop=("x",))
    assert SamplingParams(stop="xy").stop == ("xy",)
    with pytest.raises(InvalidArgument, match="stop is 3"):
        SamplingParams(stop=3)
    with pytest.raises(InvalidArgument, match="non-empty strings"):
        SamplingParams(stop="")
