"""The tokenizer of a checkpoint in the form of a GGUF file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf import GGUFWriter, TokenType

from ...errors import ModelFormatError, NotSupported
from ..text.tokenizer import HFTokenizer

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_WORDS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_WORDS}?"
    rf"|\p{{N}}{{1,3}}|{_CASED_REST}"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_CASED_REST}"
)
_DIGITS = "single digits"
_BYTES_WITH_WORDS = "GPT-2 words"

PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = MappingProxyType(
    {
        ((_BYTES_WITH_WORDS,), False): "gpt-2",
        ((_GPT2,), False): "gpt-2",
        ((_DIGITS, _BYTES_WITH_WORDS), False): "smollm",
        ((_LLAMA3,), False): "smaug-bpe",
        ((_LLAMA3,), True): "llama-bpe",
        ((_QWEN2,), False): "qwen2",
        ((_GPT4O,), False): "gpt-4o",
        ((_TEKKEN,), False): "tekken",
    }
)
"""llama.cpp's name for the steps that cut a text before its pieces are merged, and whether a piece that is a
token itself is taken without merging."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a GGUF file says about text."""

    model: str
    """"gpt2": byte-level merges; "llama": SentencePiece with scores."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    """One for each token of a "llama" model; a lower merge rank is a higher score."""
    add_space_prefix: bool
    bos: int | None
    eos: tuple[int, ...]
    """All ids that end a text; the first is "the" end of sequence."""
    padding: int | None
    unknown: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Add it to the file's key-value pairs."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
        for add, token_id in (
            (writer.add_bos_token_id, self.bos),
            (writer.add_eos_token_id, next(iter(self.eos), None)),
            (writer.add_eot_token_id, next(iter(self.eos[1:]), None)),
            (writer.add_eom_token_id, next(iter(self.eos[2:]), None)),
            (writer.add_pad_token_id, self.padding),
            (writer.add_unk_token_id, self.unknown),
        ):
            if token_id is not None:
                add(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(
    folder: Path, vocab_size: int, eos_token_ids: Sequence[int], bos_token_id: int | None, pad: int | None
) -> Vocabulary:
    """Read the tokenizer of the model in `folder`.

    Ids from the tokenizer's size up to `vocab_size` get names of their own and are marked unused; tokens
    beyond `vocab_size`, which the model cannot read, are left out.

    Raises:
        ModelFormatError: there is no tokenizer, or it cannot be read.
        NotSupported: llama.cpp has no tokenizer that works like it.
    """
    tokenizer = HFTokenizer.from_folder(folder, eos_token_ids)
    pipeline: dict[str, Any] = json.loads(tokenizer.to_json())
    model = pipeline["model"]
    if model["type"] != "BPE":
        raise NotSupported(
            f"the tokenizer in {folder} is of type {model['type']}; only BPE can be written to GGUF files"
        )
    byte_pieces = bool(model.get("byte_fallback"))
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    tokens, types = _tokens(pipeline, vocab_size, byte_pieces)
    add_bos, add_eos, added_bos = _added_ends(tokenizer, folder)
    return Vocabulary(
        model="llama" if byte_pieces else "gpt2",
        pre="default" if byte_pieces else _pre_tokenizer(pipeline, folder),
        tokens=tokens,
        types=types,
        merges=() if byte_pieces else tuple(" ".join(pair) for pair in merges),
        scores=_scores(tokens, merges) if byte_pieces else (),
        add_space_prefix=_prepends_space(pipeline),
        bos=bos_token_id if added_bos is None else added_bos,
        eos=tuple(tokenizer.eos_token_ids),
        padding=pad,
        unknown=model["vocab"].get(model.get("unk_token")),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=tokenizer.chat_template,
    )


def _tokens(
    pipeline: dict[str, Any], vocab_size: int, byte_pieces: bool
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    model = pipeline["model"]
    texts: dict[int, str] = {token_id: text for text, token_id in model["vocab"].items()}
    types = dict.fromkeys(texts, TokenType.NORMAL)
    if byte_pieces:
        for value in range(256):
            token_id = model["vocab"].get(f"<0x{value:02X}>")
            if token_id is not None:
                types[token_id] = TokenType.BYTE
    for token in pipeline["added_tokens"]:
        texts[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    # llama.cpp aborts the process on two tokens of the same name.
    for token_id in range(vocab_size):
        if token_id not in texts:
            texts[token_id], types[token_id] = f"[PAD{token_id}]", TokenType.UNUSED
    ids = range(vocab_size)
    return tuple(texts[i] for i in ids), tuple(types[i] for i in ids)


def _scores(tokens: Sequence[str], merges: Sequence[tuple[str, ...]]) -> tuple[float, ...]:
    """SentencePiece merges the pair with the best score first; the merges were written in that order."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return tuple(-float(ranks.get(token, len(merges))) for token in tokens)


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return list(part[key]) if part["type"] == "Sequence" else [part]


def _pre_tokenizer(pipeline: dict[str, Any], folder: Path) -> str:
    steps: list[str] = []
    for step in _steps(pipeline["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Split" and "Regex" in step["pattern"]:
            steps.append(step["pattern"]["Regex"])
        elif step["type"] == "Digits" and step["individual_digits"]:
            steps.append(_DIGITS)
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            steps += [_BYTES_WITH_WORDS] if step["use_regex"] else []
        else:
            raise NotSupported(f"the pre-tokenizer {json.dumps(step)} in {folder} has no name in llama.cpp")
    found = PRE_TOKENIZERS.get((tuple(steps), bool(pipeline["model"].get("ignore_merges"))))
    if found is None:
        raise NotSupported(f"the pre-tokenizer {' | '.join(steps)} in {folder} has no name in llama.cpp")
    return found


def _prepends_space(pipeline: dict[str, Any]) -> bool:
    """Whether a text gets a blank before its first word."""
    normal = _steps(pipeline["normalizer"], "normalizers")
    before = _steps(pipeline["pre_tokenizer"], "pretokenizers")
    return any(step["type"] == "Prepend" for step in normal) or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") in ("first", "always") for step in before
    )


def _added_ends(tokenizer: HFTokenizer, folder: Path) -> tuple[bool, bool, int | None]:
    """Whether a text gets a begin- and an end-of-sequence token, and the id of the first."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a")
    for begin in (0, 1):
        for end in (0, 1):
            if len(full) == begin + len(plain) + end and full[begin : begin + len(plain)] == plain:
                if end and full[-1] not in tokenizer.eos_token_ids:
                    break
                return bool(begin), bool(end), full[0] if begin else None
    raise ModelFormatError(f"the tokenizer in {folder} makes {full} of a text whose tokens are {plain}")
