import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.backends.gguf.gguf_file import read_gguf
from millstream.backends.gguf.model_file import read_model
from millstream.errors import ModelFormatError

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
FORMS = {0: "<B", 2: "<H", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}
Q8_0 = 8


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content) -> bytes:
    return string(content) if kind == STRING else struct.pack(FORMS[kind], content)


def pair(key: str, kind: int, content) -> bytes:
    if isinstance(content, list):
        packed = b"".join(value(kind, item) for item in content)
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(content)) + packed
    return string(key) + struct.pack("<I", kind) + value(kind, content)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(pairs: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3) -> bytes:
    """A whole file with `data` zero bytes behind the padded header."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


METADATA = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (U32, 2),
    "llama.context_length": (U32, 128),
    "llama.embedding_length": (U32, 64),
    "llama.attention.head_count": (U32, 4),
    "tokenizer.ggml.tokens": (STRING, ["a", "b", ""]),
}
TENSORS = [("token_embd.weight", (64, 3), 0, 0), ("output.weight", (64, 3), Q8_0, 768)]
DATA = 768 + 6 * 34


def model(data: int = DATA, version: int = 3, tensors=None, **changes) -> bytes:
    """A model's bytes; keyword `llama__block_count=(U32, 3)` puts another value, None takes the key away."""
    merged = {**METADATA, **{key.replace("__", "."): said for key, said in changes.items()}}
    pairs = [pair(key, *said) for key, said in merged.items() if said is not None]
    return gguf(pairs, [tensor(*each) for each in (TENSORS if tensors is None else tensors)], data, version)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_header_of_a_whole_file(path: Path, version: int) -> None:
    path.write_bytes(
        model(
            version=version,
            a__number=(F32, 0.5),
            a__flag=(BOOL, True),
            some__numbers=(I32, [3, -1]),
            flags=(BOOL, [True, False]),
        )
    )
    file = read_gguf(path)
    assert file.version == version
    assert file.text("general.architecture") == "llama"
    assert file.integer("llama.block_count") == 2
    assert (file.number("a.number"), file.flag("a.flag")) == (0.5, True)
    assert np.array_equal(file.metadata["flags"], [True, False])
    assert file.integers("some.numbers", 2) == (3, -1)
    assert file.integers("llama.block_count", 3) == (2, 2, 2)
    assert list(file.strings("tokenizer.ggml.tokens")) == [b"a", b"b", b""]
    assert len(file.strings("tokenizer.ggml.tokens")) == 3
    assert file.text("no.such") is file.integer("no.such") is file.strings("no.such") is None
    first, second = file.tensors
    assert (first.name, first.shape, first.type.name, first.num_bytes) == (
        "token_embd.weight",
        (64, 3),
        "F32",
        768,
    )
    assert (second.type.name, second.offset, second.num_bytes, second.size) == ("Q8_0", 768, 204, 192)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has only 0 bytes"),
        (b"GG", "it has only 2 bytes"),
        (b"not a model at all", "it begins with b'not ' instead of b'GGUF'"),
        (b"FUGG" + bytes(40), "for big-endian machines"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "for big-endian machines"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1; known: 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "is GGUF version 4; known: 2 and 3"),
        (b"GGUF" + struct.pack("<I", 3), "truncated or damaged: the number of tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "announces 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "announces 1152921504606846976 keys"),
        (gguf([string("")], []), "key 0 has no name"),
        (gguf([struct.pack("<Q", 1 << 63)], []), "the name of key 0 has 9223372036854775808 bytes"),
        (gguf([string("k") + struct.pack("<I", 99)], []), "key 'k' has a value of the unknown type 99"),
        (gguf([string("k") + struct.pack("<IIQ", 9, 9, 1)], []), "key 'k' is an array of the unknown type 9"),
        (gguf([string("k") + struct.pack("<IIQ", 9, 4, 1 << 62)], []), "key 'k' would take"),
        (
            gguf([string("k") + struct.pack("<IIQ", 9, 8, 1 << 62)], []),
            "key 'k' has 4611686018427387904 strings",
        ),
        (gguf([string("k") + struct.pack("<IIQ", 9, 8, 1000)], []), "the strings of key 'k'"),
        (gguf([string("k\n2") + struct.pack("<IQ", 8, 1 << 40)], []), r"key 'k\\n2' has 1099511627776 bytes"),
        (gguf([pair("k", U32, 1), pair("k", U32, 1)], []), "key 'k' is there twice"),
        (model(general__alignment=(U32, 24)), "general.alignment is 24, which is no power of 2"),
        (model(general__alignment=(U32, 0)), "general.alignment is 0"),
        (model(tensors=[("t" * 64, (1,))]), "the name of tensor 0 has 64 bytes, more than 63"),
        (model(tensors=[("t", (1,) * 5)]), "tensor 't' has 5 dimensions"),
        (model(tensors=[("t", (1 << 63,))]), "tensor 't' has the impossible shape"),
        (model(tensors=[("t", (1 << 40, 1 << 40))]), "tensor 't' has the impossible shape"),
        (model(tensors=[("t", (4,), 43)]), "the tensor 't' of the unknown type 43"),
        (model(tensors=[("t", (4,), 31)]), "of type Q4_0_4_4, which llama.cpp no longer reads"),
        (model(tensors=[("t", (33,), Q8_0)]), "rows of tensor 't' have 33 elements, no multiple of 32"),
        (model(tensors=[("t", (8,)), ("t", (8,), 0, 32)]), "tensor 't' is there twice"),
        (model(tensors=[("t", (8,)), ("u", (8,), 0, 16)]), "tensor 'u' begins at 16 instead of 32"),
        (model(data=DATA - 1), r"is truncated: it has \d+ bytes, and the tensor 'output.weight' ends at \d+"),
        (model(data=0), "is truncated: it has .* tensor 'token_embd.weight'"),
    ],
)
def test_damage_is_told_in_one_sentence(path: Path, content: bytes, says: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=says) as caught:
        read_gguf(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.gguf", "."])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFormatError, match="cannot be read"):
        read_gguf(tmp_path / name)


def test_keys_of_another_type(path: Path) -> None:
    path.write_bytes(model(llama__block_count=(STRING, "two"), flag=(BOOL, True), few=(I32, [1])))
    file = read_gguf(path)
    for ask, what in [
        (lambda: file.integer("llama.block_count"), "llama.block_count is not a whole number"),
        (lambda: file.integer("flag"), "flag is not a whole number"),
        (lambda: file.text("few"), "few is not a string"),
        (lambda: file.integers("few", 2), "few is not a whole number, or 2 of them"),
        (lambda: file.strings("few"), "few is not an array of strings"),
    ]:
        with pytest.raises(ModelFormatError, match=what):
            ask()


def test_shape_with_defaults(path: Path) -> None:
    path.write_bytes(model())
    read = read_model(path)
    assert read.num_parameters == 2 * 192
    assert read.tensor_bytes == 768 + 204
    assert read.tensor_type == "f32"
    shape = read.shape
    assert (shape.heads, shape.kv_heads, shape.key_length, shape.value_length) == ((4, 4), (4, 4), 16, 16)
    assert (shape.feed_forward, shape.kv_per_token) == ((256, 256), 2 * 4 * 32)


def test_shape_that_differs_by_layer(path: Path) -> None:
    path.write_bytes(
        model(
            llama__attention__head_count_kv=(I32, [0, 2]),
            llama__attention__key_length=(U32, 24),
            llama__attention__value_length=(U32, 8),
            llama__ssm__inner_size=(U32, 128),
            llama__ssm__state_size=(U32, 16),
            llama__ssm__conv_kernel=(U32, 4),
        )
    )
    shape = read_model(path).shape
    assert shape.kv_heads == (0, 2)
    assert shape.kv_per_token == 2 * (24 + 8)
    assert shape.recurrent_state == 3 * 128 + 128 * 16


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general__architecture": None}, "has no general.architecture"),
        ({"general__type": (STRING, "adapter")}, "no language model but a GGUF file of the type 'adapter'"),
        ({"tensors": []}, "has no tensors: it is only a vocabulary"),
        ({"tokenizer__ggml__tokens": (STRING, ["a", "b", "a"])}, "has the token 'a' twice"),
        ({"tokenizer__ggml__tokens": (STRING, ["", "[EMPTY_0]"])}, r"the token '\[EMPTY_0\]' twice"),
        ({"llama__block_count": None}, "has no llama.block_count"),
        ({"llama__block_count": (U32, 0)}, "llama.block_count is 0; allowed: 1 to 512"),
        ({"llama__block_count": (U32, 513)}, "llama.block_count is 513; allowed: 1 to 512"),
        ({"llama__context_length": (U32, 0)}, "llama.context_length is 0"),
        (
            {"llama__rope__scaling__type": (STRING, "twisted")},
            "rope scaling is 'twisted'; allowed: none, linear",
        ),
        ({"llama__expert_count": (U32, 4)}, "uses 0 of 4 experts"),
        ({"llama__expert_used_count": (U32, 4)}, "uses 4 of 0 experts"),
        ({"llama__nextn_predict_layers": (U32, 3)}, "3 of its 2 layers"),
        ({"llama__attention__head_count": (I32, [4, -4])}, "head_count is negative"),
        ({"split__count": (2, 2)}, "part of a model in 2 files, but by its name one of 1"),
    ],
)
def test_models_that_llama_cpp_would_abort_on(path: Path, changes, says: str) -> None:
    path.write_bytes(model(**changes))
    with pytest.raises(ModelFormatError, match=says):
        _ = read_model(path).shape


def split_model(folder: Path, count: int = 2, **changes) -> list[Path]:
    paths = [folder / f"m-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        keys = {"split__no": (2, number), "split__count": (2, count), "split__tensors__count": (I32, count)}
        path.write_bytes(model(tensors=[(f"t{number}", (8,))], data=32, **{**keys, **changes}))
    return paths


def test_split_models(tmp_path: Path) -> None:
    first, second = split_model(tmp_path)
    for path in (first, second, tmp_path):
        read = read_model(path)
        assert read.path == first
        assert [file.path for file in read.files] == [first, second]
        assert read.num_parameters == 16
    second.unlink()
    with pytest.raises(
        ModelFormatError, match=r"one of 2 parts of a model, of which m-00002-of-00002.gguf is missing"
    ):
        read_model(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFormatError, match="says that it is part 0, but its name says 1"):
        read_model(first)
    split_model(tmp_path, split__tensors__count=(I32, 3))
    with pytest.raises(ModelFormatError, match="announces 3 tensors, and its 2 parts have 2"):
        read_model(first)
    second.write_bytes(b"GGUF")
    with pytest.raises(ModelFormatError, match=r"m-00002-of-00002.gguf is truncated"):
        read_model(first)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"has no \.gguf model"):
        read_model(tmp_path)
    (tmp_path / "mmproj-model-f16.gguf").write_bytes(b"a projector")
    (tmp_path / "m-Q8_0.gguf").write_bytes(model())
    assert read_model(tmp_path).path == tmp_path / "m-Q8_0.gguf"
    (tmp_path / "m-q4_k_m.gguf").write_bytes(model())
    with pytest.raises(
        ModelFormatError, match=rf"2 \.gguf models: name one of them, {tmp_path}:Q8_0 or .*:q4_k_m"
    ):
        read_model(tmp_path)


FULL = model(
    llama__expert_count=(U32, 0),
    general__alignment=(U32, 32),
    tokenizer__ggml__scores=(F32, [0.0, 1.0, 2.0]),
    split__count=(2, 1),
)


def told(path: Path) -> str:
    """What is wrong with the model; "" where it can be read."""
    try:
        read = read_model(path)
        _ = (read.shape, read.tensor_type, read.generation_defaults, read.missing_byte_tokens)
    except ModelFormatError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(FULL) - DATA), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, len(FULL)) | st.none(),
)
def test_no_damage_gives_anything_but_a_model_error(changes, cut, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    content = bytearray(FULL)
    for position, byte in changes:
        content[position] = byte
    path.write_bytes(content[:cut])
    sentence = told(path)
    assert "\n" not in sentence
    assert len(sentence) < 1000
    if cut is not None and cut < len(FULL):
        assert sentence


def test_every_cut_is_noticed(path: Path) -> None:
    for length in random.Random(0).sample(range(len(FULL)), 200):
        path.write_bytes(FULL[:length])
        with pytest.raises(ModelFormatError):
            read_gguf(path)
