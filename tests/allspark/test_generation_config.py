"""ASGenerationConfigBuilder and the translation of what it builds."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from millstream.allspark import ASGenerationConfigBuilder, GenerationConfigAdapter, MultiMediaInfo, VocabType
from millstream.allspark.sampling import DASHINFER_KEYS, translate
from millstream.engine import RequestOptions, SamplingParams
from millstream.errors import InvalidArgument, NotSupported

Builder = ASGenerationConfigBuilder


def params_of(config: dict[str, Any]) -> SamplingParams:
    return translate(config).params


SETTERS: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "seed": 5,
    "max_length": 100,
    "min_length": 4,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "length_penalty": 1.3,
    "suppress_repetition_in_generation": True,
    "no_repeat_ngram_size": 2,
    "eos_token_id": 9,
    "stop_words_ids": [[1, 2]],
    "bad_words_ids": [[3]],
    "num_beams": 1,
    "num_return_sequences": 2,
    "logprobs": True,
    "top_logprobs": 0,
    "uuid": "mine",
    "lora_name": "",
    "response_format": {"type": "text"},
    "vocab": {"a": 1},
    "vocab_type": VocabType.VOCAB_TYPE_BPE,
    "enable_tensors_from_model_inference": False,
    "max_new_tokens": 6,
    "min_new_tokens": 2,
    "min_p": 0.1,
    "stop": ["x"],
    "stop_token_ids": [8],
    "logit_bias": {4: 1.0},
    "allowed_token_ids": [1, 2],
    "priority": 1,
    "deadline": 9.0,
    "queue_timeout": 8.0,
}


def test_every_key_of_dashinfer_has_a_setter() -> None:
    assert set(DASHINFER_KEYS) - set(SETTERS) == {"mm_info"}


@pytest.mark.parametrize("key", SETTERS)
def test_each_setter_sets_its_key_and_returns_the_builder(key: str) -> None:
    builder = Builder()
    assert getattr(builder, key)(SETTERS[key]) is builder
    assert builder.build() == {key: SETTERS[key]} == Builder().update({key: SETTERS[key]}).build()
    translate(builder.build())


def test_all_settings_together_are_understood() -> None:
    params = params_of({**SETTERS, "do_sample": True})
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.5, 3, 0.9, 0.1)
    assert (params.max_length, params.max_new_tokens, params.min_length, params.min_new_tokens) == (
        100,
        6,
        4,
        2,
    )
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.1, 0.1, 0.2)
    assert (params.suppress_repetition_in_generation, params.no_repeat_ngram_size) == (True, 2)
    assert (params.eos_token_ids, params.ignore_eos, params.n, params.seed) == ((9,), True, 2, 5)
    assert (params.stop_words_ids, params.bad_words_ids) == (((1, 2),), ((3,),))
    assert (params.stop, params.stop_token_ids, params.allowed_token_ids) == (("x",), (8,), (1, 2))
    assert (params.logprobs, params.top_logprobs, params.logit_bias) == (True, 0, {4: 1.0})
    translation = translate(SETTERS)
    assert translation.options == RequestOptions(priority=1, deadline=9.0, queue_timeout=8.0)
    assert translation.uuid == "mine"


def test_the_builder_copies_and_rejects_unknown_keys() -> None:
    builder = Builder(seed=3, eos_token_id=7)
    built = builder.build()
    built["seed"] = 4
    assert builder.build() == {"seed": 3, "eos_token_id": 7}
    with pytest.raises(InvalidArgument, match="temprature"):
        builder.update({"temprature": 1.0})
    with pytest.raises(InvalidArgument, match="mapping"):
        builder.update({"top_k", 1})


def test_log_probs_and_defaults_of_flags() -> None:
    assert Builder().log_probs(True, 3).build() == {"logprobs": True, "top_logprobs": 3}
    assert Builder().do_sample().early_stopping().build() == {"do_sample": True, "early_stopping": True}


def test_nothing_given_means_dashinfers_defaults() -> None:
    params = params_of({})
    assert (params.max_length, params.top_k, params.top_p, params.temperature) == (20, 50, 1.0, 1.0)
    assert (params.eos_token_ids, params.ignore_eos, params.seed, params.n) == (None, False, None, 1)
    assert params_of({"max_new_tokens": 5}).max_length is None


@pytest.mark.parametrize(
    "config", [{"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}, {"temperature": 1e-6}]
)
def test_greedy(config: dict[str, Any]) -> None:
    assert params_of(config).temperature == 0


def test_a_temperature_that_does_not_matter_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        params_of({"do_sample": False})
        assert caplog.text == ""
        params_of({"do_sample": False, "temperature": 0.7, "top_p": 0.5})
    assert "temperature, top_p do not matter" in caplog.text


def test_translations_of_single_keys() -> None:
    assert params_of({"top_p": 1.0}).top_p == 1.0
    assert params_of({"eos_token_id": [2, 0]}).eos_token_ids == (2, 0)
    assert params_of({"eos_token_id": None, "top_k": None}).eos_token_ids is None
    assert params_of({"early_stopping": True}).ignore_eos is False
    assert params_of({"logprobs": False, "top_logprobs": 5}).top_logprobs == 0
    assert params_of({"logprobs": True, "top_logprobs": 20}).top_logprobs == 20
    assert params_of({"num_return_sequences": 3, "n": 3}).n == 3


@pytest.mark.parametrize(
    ("config", "kind", "match"),
    [
        ({"num_beams": 2}, NotSupported, "beam"),
        ({"lora_name": 3}, InvalidArgument, "adapter is 3"),
        ({"response_format": {"type": "json_object"}}, NotSupported, "guided"),
        ({"mm_info": MultiMediaInfo()}, NotSupported, "multimedia"),
        ({"enable_tensors_from_model_inference": True}, NotSupported, "tensors"),
        ({"max_lenght": 3}, InvalidArgument, "max_lenght"),
        ({"top_k": -1}, InvalidArgument, "top_k"),
        ({"top_p": 1.5}, InvalidArgument, "top_p"),
        ({"repetition_penalty": 2.5}, InvalidArgument, "repetition_penalty"),
        ({"presence_penalty": 3}, InvalidArgument, "presence_penalty"),
        ({"frequency_penalty": -3}, InvalidArgument, "frequency_penalty"),
        ({"temperature": -1.0}, InvalidArgument, "temperature"),
        ({"logprobs": True, "top_logprobs": 21}, InvalidArgument, "top_logprobs"),
        ({"do_sample": 1}, InvalidArgument, "do_sample"),
        ({"early_stopping": "never"}, InvalidArgument, "early_stopping"),
        ({"early_stopping": False, "ignore_eos": False}, InvalidArgument, "early_stopping"),
        ({"eos_token_id": -1}, InvalidArgument, "eos_token_ids"),
        ({"eos_token_id": 3, "eos_token_ids": [4]}, InvalidArgument, "eos_token_id"),
        ({"num_return_sequences": 2, "n": 3}, InvalidArgument, "num_return_sequences"),
        ({"stop_words_ids": [3]}, InvalidArgument, "stop_words_ids"),
        ({"bad_words_ids": [[]]}, InvalidArgument, "bad_words_ids"),
        ({"uuid": 3}, InvalidArgument, "uuid"),
        ({"priority": "high"}, InvalidArgument, "priority"),
        ({"deadline": 0}, InvalidArgument, "deadline"),
    ],
)
def test_refusals(config: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        translate(config)


def test_a_configuration_that_is_no_mapping() -> None:
    with pytest.raises(InvalidArgument, match="dict"):
        translate([("top_k", 1)])


# From transformers' configuration


def test_process_eos_tokens() -> None:
    one: dict[str, Any] = {}
    Builder.process_eos_tokens(2, one)
    several: dict[str, Any] = {}
    Builder.process_eos_tokens([2, 0], several)
    none: dict[str, Any] = {}
    Builder.process_eos_tokens(None, none)
    assert one == {"eos_token_id": 2}
    assert several == {"eos_token_id": 2, "stop_words_ids": [[2], [0]]}
    assert none == {}


def test_objects_with_to_dict_and_mappings_are_read_alike() -> None:
    fields = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": None,
        "early_stopping": "never",
        "use_cache": True,
        "max_length": 20,
        "max_new_tokens": 64,
        "eos_token_id": [5, 6],
    }
    expected = {
        "do_sample": True,
        "temperature": 0.7,
        "max_new_tokens": 64,
        "eos_token_id": 5,
        "stop_words_ids": [[5], [6]],
    }
    assert GenerationConfigAdapter.from_hf(fields) == expected
    assert Builder(SimpleNamespace(to_dict=lambda: fields)).build() == expected
    translate(expected)


GREEDY_MODEL = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda builder: builder, {"do_sample": False}),
        (
            lambda builder: builder.temperature(0.8),
            {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
        ),
        (lambda builder: builder.do_sample(), {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        (
            lambda builder: builder.do_sample(False).temperature(0.8),
            {"do_sample": False, "temperature": 0.8, "top_p": 0.9},
        ),
    ],
)
def test_asking_for_sampling_overrules_a_greedy_model(
    change: Callable[[Builder], Builder], expected: dict[str, Any]
) -> None:
    assert change(Builder(GREEDY_MODEL)).build() == expected


def test_a_length_of_ones_own_takes_the_place_of_the_models() -> None:
    builder = Builder({"max_new_tokens": 64})
    assert builder.build() == {"max_new_tokens": 64}
    assert builder.max_length(200).build() == {"max_length": 200}
