import json
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from millstream.backends.text.tokenizer import HFTokenizer
from millstream.errors import InvalidArgument, ModelFormatError, NotSupported

CORPUS = [
    "The quick brown fox jumps over the lazy dog, isn't it? 12345 times!",
    "def main() -> None:\n    print('hello,  world')\n\treturn None",
    "Größe, naïve café, señor, 北京 こんにちは 안녕 привет 😀🎉",
] * 4
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces\n\nand lines\t",
    "naïve 北京 😀 👩‍👩‍👧 ﬁ ①",
    "<s>quick</s> brown<|end|> fox",
    "don't <s> stop",
    "▁under _score",
]
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("é…", special=False)])
    return tokenizer


def byte_vocabulary() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def metaspace_bpe() -> Tokenizer:
    """As Llama 2 and Mistral have it: byte fallback, and one space less at the start of the text."""
    pieces = [*SPECIALS, *byte_vocabulary(), "▁"]
    letters = sorted(set("".join(CORPUS)) - set("北京こ안😀🎉\n\t "))
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("o", "w"), ("▁", "▁"), ("q", "u")]
    vocab = {piece: i for i, piece in enumerate([*pieces, *letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As Gemma and T5 have it, with byte fallback."""
    pieces = [(piece, -20.0) for piece in [*SPECIALS, *byte_vocabulary()]]
    letters = sorted(set("".join(CORPUS)) - set("北京こ안😀🎉\n\t "))
    pieces += [("▁", -3.0), ("▁the", -4.0), ("ow", -5.0), ("▁▁", -4.5), ("ing", -5.0)]
    pieces += [(letter, -6.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)]
    )
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words_with_suffix() -> Tokenizer:
    """As CLIP and the first GPT have it: the last token of a word says so."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=250, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def replaces_across_tokens() -> Tokenizer:
    """A decoder where the next token can change the text before it."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("qu", "kw")]
    )
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "metaspace_bpe": metaspace_bpe,
    "unigram": unigram,
    "word_piece": word_piece,
    "words_with_suffix": words_with_suffix,
    "replaces_across_tokens": replaces_across_tokens,
}


def write_folder(path: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    defaults = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps({**defaults, **config}))
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 700}))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_folder(root / name, make()) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, HFTokenizer]:
    return {name: HFTokenizer.from_folder(path) for name, path in folders.items()}


def reference(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


@pytest.mark.torch
@pytest.mark.parametrize("name", MAKERS)
def test_encode_and_decode_equal_transformers(
    name: str, folders: dict[str, Path], loaded: dict[str, HFTokenizer]
) -> None:
    theirs, ours = reference(folders[name]), loaded[name]
    for text in TEXTS:
        for special in (True, False):
            assert ours.encode(text, add_special_tokens=special) == theirs.encode(
                text, add_special_tokens=special
            )
    ids = random.Random(0).choices(range(len(theirs)), k=500)
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.torch
@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}},
        {"added_tokens_decoder": {"400": {"content": "<|end|>", "special": True, "normalized": False}}},
        {"added_tokens_decoder": {"400": {"content": "<|end|>", "special": False, "lstrip": True}}},
        {"extra_special_tokens": ["<|end|>", "<|start|>"]},
        {"additional_special_tokens": ["<|end|>"]},
        {"pad_token": {"content": "<|end|>", "__type": "AddedToken", "lstrip": True, "normalized": False}},
        {"split_special_tokens": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": None, "image_token": "<|end|>"},
    ],
)
def test_tokens_of_the_configuration_are_added_as_transformers_adds_them(
    config: dict[str, Any], tmp_path: Path
) -> None:
    write_folder(tmp_path, byte_level(), **config)
    theirs, ours = reference(tmp_path), HFTokenizer.from_folder(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.torch
def test_legacy_special_tokens_map_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level())
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|end|>", "lstrip": False, "rstrip": False}})
    )
    theirs, ours = reference(tmp_path), HFTokenizer.from_folder(tmp_path)
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.encode("fox<|end|>") == theirs.encode("fox<|end|>")


def test_truncation_and_padding_of_the_file_do_not_touch_prompts(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    ours = HFTokenizer.from_folder(write_folder(tmp_path, tokenizer))
    assert ours.encode("The quick brown fox jumps") == byte_level().encode("The quick brown fox jumps").ids


def stream_text(tokenizer: HFTokenizer, ids: list[int], skip: bool) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.push(token_id) for token_id in ids), stream.flush(), stream.flush()]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_streamed_pieces_joined_equal_decode(name: str, loaded: dict[str, HFTokenizer], data: Any) -> None:
    tokenizer = loaded[name]
    any_id = st.integers(0, 699)
    byte_id = st.integers(3, 258)
    special = st.integers(0, 2)
    words = st.sampled_from(TEXTS).map(lambda text: tokenizer.encode(text))
    some = st.one_of(any_id.map(lambda i: [i]), byte_id.map(lambda i: [i]), special.map(lambda i: [i]), words)
    ids = [token_id for part in data.draw(st.lists(some, max_size=14)) for token_id in part]
    skip = data.draw(st.booleans())
    pieces = stream_text(tokenizer, ids, skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert pieces[-1] == ""


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 40), data=st.binary(max_size=40), skip=st.booleans())
@example(cut=2, data="é".encode() + b"\xff", skip=True)
@example(cut=40, data="😀".encode()[:3], skip=True)
def test_bytes_cut_anywhere_stream_like_decode(
    loaded: dict[str, HFTokenizer], cut: int, data: bytes, skip: bool
) -> None:
    """Byte tokens of valid and invalid UTF-8, with a special token in the middle."""
    tokenizer = loaded["metaspace_bpe"]
    ids = (
        [3 + byte for byte in data[:cut]] + [1] + [3 + byte for byte in data[cut:]] + tokenizer.encode("the")
    )
    assert "".join(stream_text(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_stream_gives_text_as_soon_as_it_is_certain(loaded: dict[str, HFTokenizer]) -> None:
    tokenizer = loaded["byte_level"]
    ids = tokenizer.encode("fox 😀!")
    pieces = stream_text(tokenizer, ids, True)
    assert "".join(pieces) == "fox 😀!"
    assert pieces[-2] == ""
    assert not any("�" in piece for piece in pieces)
    words = stream_text(loaded["metaspace_bpe"], loaded["metaspace_bpe"].encode("the cow"), True)
    assert [piece for piece in words if piece] == ["the", " ", "c", "ow"]


def test_text_that_a_later_token_changes_is_held_back(loaded: dict[str, HFTokenizer]) -> None:
    tokenizer = loaded["replaces_across_tokens"]
    ids = [token_id for letter in "aqua" for token_id in tokenizer.encode(letter)]
    assert stream_text(tokenizer, ids, True) == ["", "", "", "", "akwa", ""]


def test_incomplete_character_is_flushed_as_replacement(loaded: dict[str, HFTokenizer]) -> None:
    tokenizer = loaded["metaspace_bpe"]
    stream = tokenizer.stream()
    assert [stream.push(3 + byte) for byte in "é".encode()[:1]] == [""]
    assert stream.flush() == "�"


@pytest.mark.parametrize("bad", [-1, 700, 2**40])
def test_id_outside_of_the_vocabulary(bad: int, loaded: dict[str, HFTokenizer]) -> None:
    for tokenizer in loaded.values():
        with pytest.raises(InvalidArgument, match=f"token_ids is {bad}; allowed: .*0 to 699"):
            tokenizer.decode([5, bad])
        with pytest.raises(InvalidArgument, match="0 to 699"):
            tokenizer.stream().push(bad)


def test_padding_ids_of_the_model_have_no_text(loaded: dict[str, HFTokenizer]) -> None:
    assert loaded["byte_level"].decode([699]) == ""


@pytest.mark.parametrize("text", ["a\ud800b", b"bytes", None])
def test_text_that_is_no_unicode(text: Any, loaded: dict[str, HFTokenizer]) -> None:
    with pytest.raises(InvalidArgument, match="text is "):
        loaded["byte_level"].encode(text)


def test_end_of_sequence_ids(folders: dict[str, Path]) -> None:
    assert HFTokenizer.from_folder(folders["byte_level"]).eos_token_ids == (2,)
    assert HFTokenizer.from_folder(folders["byte_level"], (7, 8)).eos_token_ids == (7, 8)


def test_several_threads(loaded: dict[str, HFTokenizer]) -> None:
    tokenizer = loaded["metaspace_bpe"]

    def work(seed: int) -> bool:
        ids = random.Random(seed).choices(range(270), k=300)
        text = TEXTS[seed % len(TEXTS)]
        same = "".join(stream_text(tokenizer, ids, True)) == tokenizer.decode(ids)
        return same and tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_loading_imports_neither_transformers_nor_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys, pathlib\n"
        "from millstream.backends.text.tokenizer import HFTokenizer\n"
        f"HFTokenizer.from_folder(pathlib.Path({str(folders['byte_level'])!r})).encode('x')\n"
        "print(sorted({'torch', 'transformers', 'jinja2', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is no tokenizer that can be read"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json is not a JSON object"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "chat_template of .* is wrong"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_damaged_files(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, byte_level())
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelFormatError, match=message):
        HFTokenizer.from_folder(tmp_path)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"has no tokenizer: neither tokenizer\.json nor"):
        HFTokenizer.from_folder(tmp_path)


@pytest.mark.torch
def test_vocabulary_and_merges_are_converted(tmp_path: Path) -> None:
    tokenizer = byte_level()
    write_folder(tmp_path, tokenizer, tokenizer_class="GPT2Tokenizer")
    (tmp_path / "tokenizer.json").unlink()
    tokenizer.model.save(str(tmp_path))
    theirs, ours = reference(tmp_path), HFTokenizer.from_folder(tmp_path)
    assert ours.encode("The quick café") == theirs.encode("The quick café") != []
    assert ours.eos_token_ids == (theirs.eos_token_id,)


def test_sentencepiece_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.backends.text.tokenizer.find_spec", lambda name: None)
    (tmp_path / "tokenizer.model").write_bytes(b"spm")
    with pytest.raises(NotSupported, match="pip install sentencepiece protobuf"):
        HFTokenizer.from_folder(tmp_path)
