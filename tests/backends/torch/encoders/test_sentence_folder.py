"""What sentence-transformers' files say, in their old and their new form, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millstream.backends.torch.encoders.sentence_folder import (
    DenseLayers,
    SentenceFolder,
    read_sentence_folder,
)
from millstream.errors import ModelFormatError, NotSupported
from millstream.scheduler.batch import Pooling

from ..encoder_files import write_dense, write_modules


def test_a_plain_checkpoint_says_nothing(tmp_path: Path) -> None:
    assert read_sentence_folder(tmp_path) == SentenceFolder(None, (), None, None)
    assert SentenceFolder().output_size(48) == 48


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "word_embedding_dimension": 384}, Pooling.CLS),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, Pooling.LAST),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
        ({"pooling_mode": ["lasttoken"]}, Pooling.LAST),
    ],
)
def test_pooling(said: dict[str, Any], pooling: Pooling, tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling", pooling=said)
    assert read_sentence_folder(tmp_path) == SentenceFolder(pooling, (), False, None)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "nothing"),
    ],
)
def test_other_poolings_are_refused(said: dict[str, Any], asked: str, tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling", pooling=said)
    with pytest.raises(
        NotSupported, match=f"asks for pooling by {asked}; allowed: one of cls, mean, lasttoken"
    ):
        read_sentence_folder(tmp_path)


@pytest.mark.parametrize(
    "kinds", [(), ("Normalize",), ("Pooling", "CNN"), ("Pooling", "Normalize", "Dense"), ("Dense", "Pooling")]
)
def test_other_orders_are_refused(kinds: tuple[str, ...], tmp_path: Path) -> None:
    write_modules(tmp_path, *kinds)
    listed = ", ".join(("Transformer", *kinds))
    with pytest.raises(
        NotSupported, match=f"lists the modules {listed}; allowed: Transformer, Pooling, then"
    ):
        read_sentence_folder(tmp_path)


def test_normalisation_and_length(tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling", "Normalize", max_length=256)
    assert read_sentence_folder(tmp_path) == SentenceFolder(Pooling.MEAN, (), True, 256)
    file = tmp_path / "sentence_bert_config.json"
    for length in (None, 0, "long"):
        file.write_text(json.dumps({"max_seq_length": length}))
        if length is None:
            assert read_sentence_folder(tmp_path).max_length is None
            continue
        with pytest.raises(ModelFormatError, match="has max_seq_length"):
            read_sentence_folder(tmp_path)


def test_lower_case_must_be_the_tokenizers(tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling")
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(NotSupported, match="asks for texts in lower case"):
        read_sentence_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert read_sentence_folder(tmp_path).pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("name", "function"),
    [("Tanh", np.tanh), ("Identity", lambda x: x), ("ReLU", lambda x: np.maximum(x, 0))],
)
def test_dense(name: str, function: Any, tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling", "Dense", "Normalize")
    weight, bias = write_dense(tmp_path / "2_Dense", 12, 5, activation=name)
    found = read_sentence_folder(tmp_path)
    assert found.output_size(12) == 5
    vector = np.linspace(-1, 1, 12)
    expected = function(weight.double().numpy() @ vector + bias.double().numpy())
    np.testing.assert_allclose(DenseLayers(found.dense)(vector), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"activation": "Softmax"}, NotSupported, "has the activation Softmax; allowed: Identity, Tanh"),
        ({"module_input_name": "tokens"}, NotSupported, "has module_input_name 'tokens'"),
        ({"in_features": "12"}, ModelFormatError, "in_features '12'"),
    ],
)
def test_dense_layers_that_are_refused(
    changes: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    write_modules(tmp_path, "Pooling", "Dense")
    write_dense(tmp_path / "2_Dense", 12, 5, **changes)
    with pytest.raises(kind, match=message):
        read_sentence_folder(tmp_path)


def test_dense_weights_that_do_not_fit(tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling", "Dense")
    write_dense(tmp_path / "2_Dense", 12, 5, bias=False)
    file = tmp_path / "2_Dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bias": True}))
    with pytest.raises(ModelFormatError, match=r"tensor linear\.bias is missing in .*2_Dense"):
        DenseLayers(read_sentence_folder(tmp_path).dense)
    file.write_text(json.dumps({**json.loads(file.read_text()), "bias": False, "out_features": 6}))
    with pytest.raises(
        ModelFormatError, match=r"linear\.weight in .* is \[5, 12\] of F32; expected is \[6, 12\]"
    ):
        DenseLayers(read_sentence_folder(tmp_path).dense)
    weights = tmp_path / "2_Dense" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelFormatError, match="2_Dense holds its weights only as pickled files"):
        DenseLayers(read_sentence_folder(tmp_path).dense)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no list"),
        ("[3]", "has the entry 3"),
        ('[{"type": "a.Transformer", "path": "../x"}]', r"has the entry .*\.\./x"),
    ],
)
def test_damaged_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelFormatError, match=message):
        read_sentence_folder(tmp_path)


def test_a_missing_module(tmp_path: Path) -> None:
    write_modules(tmp_path, "Pooling")
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelFormatError, match=r"config\.json cannot be read"):
        read_sentence_folder(tmp_path)
