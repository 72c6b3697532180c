"""What config.json is made into, and which models are native."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig

from millstream.backends.torch.decoder.config import decoder_config, is_native, read_config
from millstream.backends.torch.files.model_info import eos_token_ids, generation_defaults, max_length
from millstream.errors import ModelFormatError, NotSupported

from ..checkpoints import COMMON, FAMILIES


def _config(family: str, **changes: Any) -> PretrainedConfig:
    return AutoConfig.for_model(**{**COMMON, **FAMILIES[family], **changes})


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"hidden_act": "relu"}),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("llama", {"rope_parameters": {"rope_type": "invented", "rope_theta": 1e4}}),
        ("gemma3", {"use_bidirectional_attention": True}),
        ("llama", {"model_type": "gpt2"}),
    ],
)
def test_what_the_decoder_cannot_do_is_not_native(family: str, changes: dict[str, Any]) -> None:
    assert is_native(_config(family))
    config = _config(family, **changes)
    assert not is_native(config)
    with pytest.raises(NotSupported, match=config.model_type):
        decoder_config(config, 64)


def test_windows_rotary_embeddings_and_scales_by_layer() -> None:
    config = decoder_config(_config("gemma3"), 64)
    assert [layer.attention.window for layer in config.layers] == [10, None, 10]
    sliding, full, again = (layer.rope for layer in config.layers)
    assert sliding is not None
    assert full is not None
    assert sliding == again
    assert config.ropes[sliding].frequencies[1] == pytest.approx(10_000 ** (-2 / 8))
    assert config.ropes[full].frequencies[1] == pytest.approx(1_000_000 ** (-2 / 8))
    assert config.layers[0].attention.scale == pytest.approx(12**-0.5)
    assert config.embedding_scale == pytest.approx(48**0.5)
    assert [layer.rope for layer in decoder_config(_config("smollm3"), 64).layers] == [0, None, 0]


def test_partial_rotary_embedding() -> None:
    (rope,) = decoder_config(_config("phi3-partial"), 64).ropes
    assert len(rope.frequencies) == 2


def test_text_part_of_a_model_with_eyes() -> None:
    text = {**COMMON, **FAMILIES["gemma3"]}
    config = AutoConfig.for_model("gemma3", text_config=text)
    assert is_native(config)
    assert decoder_config(config, 64).hidden_size == COMMON["hidden_size"]


def test_yarn_reaches_beyond_the_positions_of_training() -> None:
    assert max_length(_config("qwen2-yarn", max_position_embeddings=64)) == 256
    assert max_length(_config("qwen2-yarn", max_position_embeddings=512)) == 512
    assert max_length(_config("llama")) == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no config.json"),
        ("{", "cannot be read"),
        ('{"model_type": "unheard-of"}', "cannot be read"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot be read"),
    ],
)
def test_unreadable_configurations(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelFormatError, match=said):
        read_config(tmp_path)


def test_generation_config_names_ends_and_sampling(tmp_path: Path) -> None:
    config = _config("llama")
    assert eos_token_ids(tmp_path, config) == (2,)
    assert generation_defaults(tmp_path) == {}
    said = {"eos_token_id": [7, 9], "temperature": 0.6, "top_p": None, "max_length": 20}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert eos_token_ids(tmp_path, config) == (7, 9)
    assert generation_defaults(tmp_path) == {"temperature": 0.6}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ModelFormatError, match=r"generation_config\.json"):
        generation_defaults(tmp_path)
