import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.backends.bundled import BUNDLED_MODELS, PYHELP
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")

from millstream.backends.gguf.model_file import read_model  # noqa: E402
from millstream.backends.llamacpp.tokenizer import load_tokenizer  # noqa: E402
from millstream.backends.llamacpp.vocabulary import Vocabulary  # noqa: E402

TEXTS = [
    "",
    " ",
    "Hello world",
    "How do I read a file line by line?",
    "  two  spaces\n\nand lines\t\r\n",
    "def f(x: int) -> None:\n    return x[1:2] + '''a'''",
    "naïve 北京 😀 👩‍👩‍👧 ﬁ ① \u200b\ufffd",
    "don't we'll I'M 1234567 1.5e-3",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>tail",
    "<|im_start <|im_end|",
    "a\x00b\x07",
    "x" * 5000,
]
MESSAGES = [{"role": "user", "content": "What is a list?"}]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="module")
def hf():
    return HFTokenizer.from_folder(PYHELP)


@pytest.fixture(scope="module")
def tokenizer():
    return load(BUNDLED_MODELS["pyhelp-bf16"])


def load(path: Path):
    model = read_model(path)
    return load_tokenizer(model, Vocabulary(model.path))


def check_same(hf, tokenizer, text: str) -> None:
    ids = hf.encode(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, add_special_tokens=False) == hf.encode(text, add_special_tokens=False)
    for skip in (True, False):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == hf.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_same_ids_and_text_as_the_checkpoint(hf, tokenizer, text: str) -> None:
    check_same(hf, tokenizer, text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_same_ids_and_text_for_any_string(hf, tokenizer, text: str) -> None:
    check_same(hf, tokenizer, text)


def test_same_text_for_any_ids(hf, tokenizer) -> None:
    choose = random.Random(0)
    for _ in range(300):
        ids = [choose.randrange(tokenizer_size(tokenizer)) for _ in range(choose.randrange(12))]
        for skip in (True, False):
            text = tokenizer.decode(ids, skip_special_tokens=skip)
            assert text == hf.decode(ids, skip_special_tokens=skip)
            stream = tokenizer.stream(skip_special_tokens=skip)
            pieces = [*map(stream.push, ids), stream.flush()]
            assert "".join(pieces) == text
            assert stream.flush() == ""


def tokenizer_size(tokenizer) -> int:
    with pytest.raises(InvalidArgument) as caught:
        tokenizer.decode([10**9])
    return int(caught.value.allowed.split()[-1]) + 1


def test_stream_never_breaks_a_character(tokenizer) -> None:
    text = "naïve 北京 😀"
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    stream = tokenizer.stream()
    half = [stream.push(token_id) for token_id in tokenizer.encode("😀")[:2]]
    assert "".join(half) == ""
    assert stream.flush() == "\ufffd"


def test_end_tokens_and_templates_are_those_of_the_checkpoint(hf, tokenizer) -> None:
    assert tokenizer.eos_token_ids[: len(hf.eos_token_ids)] == hf.eos_token_ids
    assert tokenizer.chat_template == hf.chat_template
    prompt = tokenizer.apply_chat_template(MESSAGES)
    assert prompt == hf.apply_chat_template(MESSAGES)
    assert tokenizer.encode(prompt, add_special_tokens=False) == hf.encode(prompt, add_special_tokens=False)


def test_what_is_refused(tokenizer) -> None:
    size = tokenizer_size(tokenizer)
    for token_id in (-1, size):
        for call in (lambda ids: tokenizer.decode(ids), lambda ids: tokenizer.stream().push(ids[0])):
            with pytest.raises(
                InvalidArgument, match=f"token_ids is {token_id}; allowed: ids .* 0 to {size - 1}"
            ):
                call([token_id])
    with pytest.raises(InvalidArgument, match="text is 5; allowed: a string"):
        tokenizer.encode(5)
    with pytest.raises(InvalidArgument, match="half of a surrogate pair"):
        tokenizer.encode("a\ud800")


def test_threads_get_the_same_answers(tokenizer) -> None:
    expected = [tokenizer.encode(text) for text in TEXTS]
    fresh = load(BUNDLED_MODELS["pyhelp-bf16"])
    with ThreadPoolExecutor(4) as pool:
        rounds = list(pool.map(lambda _: [fresh.encode(text) for text in TEXTS], range(8)))
        texts = list(pool.map(lambda _: [fresh.decode(ids) for ids in expected], range(8)))
    assert all(ids == expected for ids in rounds)
    assert all(text == texts[0] for text in texts)


def test_llama_cpps_part_is_freed_with_the_vocabulary() -> None:
    vocabulary = Vocabulary(BUNDLED_MODELS["pyhelp-bf16"])
    stream = load_tokenizer(read_model(vocabulary.path), vocabulary).stream()
    gone = weakref.ref(vocabulary)
    del vocabulary
    gc.collect()
    assert gone() is not None
    assert stream.push(50)
    del stream
    gc.collect()
    assert gone() is None


def write_vocabulary(path: Path, tokens: list[tuple[str, int]], kind: str = "llama", **said: object) -> Path:
    """A vocabulary and one tensor; keyword `add_bos_token=True` sets tokenizer.ggml.add_bos_token."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model(kind)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([role for _, role in tokens])
    writer.add_token_scores([float(-i) for i in range(len(tokens))])
    for key, value in said.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        if isinstance(value, str):
            writer.add_string(key.replace("__", "."), value)
        elif isinstance(value, list):
            writer.add_token_merges(value)
        else:
            add(f"tokenizer.ggml.{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


BYTES = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
SENTENCE_PIECE = [
    ("<unk>", UNKNOWN),
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    *BYTES,
    ("▁", NORMAL),
    ("▁hi", NORMAL),
    *[(letter, NORMAL) for letter in "hieo▁t"[:4]],
    ("<tool>", USER_DEFINED),
]


def test_sentence_piece_with_a_blank_in_front(tmp_path: Path) -> None:
    tokenizer = load(write_vocabulary(tmp_path / "m.gguf", SENTENCE_PIECE))
    names = [token for token, _ in SENTENCE_PIECE]
    ids = tokenizer.encode("hi é")
    assert [names[i] for i in ids] == ["<s>", "▁", "h", "i", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "hi é"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s> hi é"
    assert tokenizer.decode([names.index("▁hi"), names.index("▁hi")]) == "hi hi"
    assert tokenizer.decode([names.index("<0xC3>"), names.index("h")]) == "\ufffdh"
    assert tokenizer.decode([names.index("<tool>")]) == "<tool>"
    assert tokenizer.eos_token_ids == (2,)
    with pytest.raises(NotSupported, match="no chat template"):
        tokenizer.apply_chat_template(MESSAGES)


def test_rules_of_the_file(tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "m.gguf",
        SENTENCE_PIECE,
        add_bos_token=False,
        add_eos_token=True,
        add_space_prefix=False,
        eot_token_id=264,
        tokenizer__chat_template="{{ bos_token }}{{ messages[0]['content'] }}",
        tokenizer__chat_template__short="{{ messages[0]['content'] }}",
    )
    tokenizer = load(path)
    names = [token for token, _ in SENTENCE_PIECE]
    assert [names[i] for i in tokenizer.encode("hi")] == ["h", "i", "</s>"]
    assert tokenizer.encode("hi", add_special_tokens=False) == tokenizer.encode("hi")[:-1]
    assert tokenizer.decode([names.index("▁hi")]) == " hi"
    assert tokenizer.eos_token_ids == (2, 264)
    assert tokenizer.apply_chat_template(MESSAGES) == "<s>What is a list?"
    assert tokenizer.apply_chat_template(MESSAGES, chat_template="short") == "What is a list?"


def test_words_of_any_length(tmp_path: Path) -> None:
    """This kind of vocabulary cuts words by a regular expression that recurses for each letter."""
    tokens = [("<end>", CONTROL), ("a", NORMAL), ("aa", NORMAL)]
    path = write_vocabulary(
        tmp_path / "m.gguf",
        tokens,
        "gpt2",
        tokenizer__ggml__pre="deepseek-llm",
        merges=["a a"],
        eos_token_id=0,
    )
    tokenizer = load(path)
    assert tokenizer.encode("a" * 300_001) == [2] * 150_000 + [1]
    with pytest.raises(InvalidArgument, match="text is '5000000 bytes long'; allowed: at most 4194304 bytes"):
        tokenizer.encode("a" * 5_000_000)


@pytest.mark.parametrize(
    ("tokens", "kind", "says"),
    [
        (SENTENCE_PIECE[:200], "llama", "has no tokens for 59 of the 256 bytes"),
        (
            [("[UNK]", UNKNOWN), ("a", NORMAL)],
            "bert",
            "lacks the tokens that its tokenizer puts around a text",
        ),
        (SENTENCE_PIECE, "no_vocab", "has no tokenizer"),
        (SENTENCE_PIECE, "clay tablets", "cannot be loaded by llama.cpp: unknown tokenizer: 'clay tablets'"),
    ],
)
def test_tokenizers_that_cannot_be_used(tmp_path: Path, tokens, kind: str, says: str) -> None:
    with pytest.raises(ModelFormatError, match=says) as caught:
        load(write_vocabulary(tmp_path / "m.gguf", tokens, kind))
    assert "\n" not in str(caught.value)
