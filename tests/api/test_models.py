"""Model: a model, its handler and its defaults, as every face sees them."""

import pytest

from millstream.api.models import Model
from millstream.engine import Engine, ModelConfig
from millstream.errors import InvalidArgument, ModelNotFound


@pytest.fixture
def model():
    config = ModelConfig(model="pyhelp", name="m", max_length=128, num_blocks=64)
    with Engine() as engine:
        engine.install_model(config)
        yield Model(engine, config)


def test_what_its_files_and_the_engine_say(model) -> None:
    assert (model.name, model.max_length) == ("m", 128)
    assert model.tokenizer is model.handler.tokenizer
    assert model.text_defaults == model.info.generation_defaults
    assert model.chat_defaults == model.handler.sampling_defaults


def test_defaults_then_what_is_given_the_later_first(model) -> None:
    params = model.sampling_params({"temperature": 0.1, "top_p": 0.9}, {"temperature": 0.2, "max_tokens": 4})
    assert (params.temperature, params.top_p, params.max_new_tokens) == (0.2, 0.9, 4)


def test_an_unknown_field_is_named(model) -> None:
    with pytest.raises(InvalidArgument, match=r"'temprature'.*did you mean temperature"):
        model.sampling_params({"temprature": 1})


def test_a_model_that_is_not_installed() -> None:
    with Engine() as engine, pytest.raises(ModelNotFound, match="'nowhere'"):
        Model(engine, ModelConfig(model="nowhere"))
