import pytest

from millstream.backends.models.gguf_names import choose_model, models_among, parts_of, quantisation_of
from millstream.errors import ModelFormatError, ModelNotFound


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("llama-3.2-1b-instruct-q4_k_m.gguf", "q4_k_m"),
        ("model.IQ2_XXS.gguf", "IQ2_XXS"),
        ("gemma-3-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("pyhelp-bf16.gguf", "bf16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q4_0/big-Q4_0-00002-of-00003.gguf", "Q4_0"),
        ("F16.gguf", "F16"),
        ("qwen3.gguf", None),
        ("Q4_0/plain.gguf", None),
    ],
)
def test_quantisation_of_a_name(name: str, quantisation: str | None) -> None:
    assert quantisation_of(name) == quantisation


def test_parts() -> None:
    assert parts_of("m.gguf") == ("m.gguf",)
    assert parts_of("a/m-00002-of-00003.gguf") == tuple(f"a/m-0000{i}-of-00003.gguf" for i in (1, 2, 3))


def test_models_among_names() -> None:
    names = ["z-F16.gguf", "m-00002-of-00002.gguf", "mmproj-x.gguf", "m.imatrix.gguf", "a.txt", "B.GGUF"]
    assert [model.first for model in models_among(names)] == ["B.GGUF", "m-00001-of-00002.gguf", "z-F16.gguf"]


def test_choosing() -> None:
    names = ["a-Q8_0.gguf", "a-Q4_0.gguf"]
    assert choose_model(names[:1], None, "here").first == "a-Q8_0.gguf"
    assert choose_model(names, "q4_0", "here").first == "a-Q4_0.gguf"
    with pytest.raises(
        ModelFormatError, match=r"^here has 2 \.gguf models: name one of them, here:Q4_0 or here:Q8_0$"
    ):
        choose_model(names, None, "here")
    with pytest.raises(ModelNotFound, match=r"^here has no \.gguf model 'Q5_0'; it has Q4_0, Q8_0$"):
        choose_model(names, "Q5_0", "here")
    with pytest.raises(ModelFormatError, match=r"^here has no \.gguf model$"):
        choose_model(["a.txt"], None, "here")
