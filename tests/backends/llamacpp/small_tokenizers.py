"""Small trained tokenizers of each kind that GGUF files can hold, as tokenizer.json."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, trainers
from tokenizers import models as kinds
from tokenizers import pre_tokenizers as cuts

CORPUS = (
    "The quick brown fox can't jump over 1234567 lazy dogs; WE'LL see, DON'T we?\r\n\r\n\n\t  Grüße aus Köln"
    ", привет мир, 你好世界, 日本語テスト.\ndef f(x_1):\n    return x_1 ** 2  # and the other thing\n"
) * 4
TEXTS = [
    "",
    " ",
    "\n\n\n",
    "the other thing",
    "  leading and trailing  ",
    "I'm WE'RE don'T 1 22 333 4444 12345",
    "a\r\n\r\nb\n \n  c\t\td",
    "x_1 ** 2 != (y-3)/4;  // $%&",
    "Grüße, МИР 世界 ßЖé ²½",
    "👩\u200d👩\u200d👧 e\u0301 \u00a0\u3000x",
    "<|begin|>user\nhi<|end|>\n",
    "x<|end|> y <|end|>",
    "<|end",
]
SPECIAL = ["<|begin|>", "<|end|>"]


def save_byte_level(
    steps: tuple[str, ...], ignore_merges: bool, folder: Path, vocab_size: int = 600
) -> Tokenizer:
    """Train a tokenizer with a pre-tokenizer of the exporter's table.

    It is written to `folder` and given back as read from there.
    """
    tokenizer = Tokenizer(kinds.BPE(ignore_merges=ignore_merges))
    regexes = [step for step in steps if "\\p" in step]
    digits = [cuts.Digits(individual_digits=True)] if "single digits" in steps else []
    tokenizer.pre_tokenizer = cuts.Sequence(
        [
            *(cuts.Split(Regex(regex), "isolated") for regex in regexes),
            *digits,
            cuts.ByteLevel(add_prefix_space=False, use_regex="GPT-2 words" in steps),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=cuts.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return _save(json.loads(tokenizer.to_str()), folder)


def save_sentencepiece(blank_before: bool, folder: Path, vocab_size: int = 600) -> Tokenizer:
    """Train a tokenizer like Llama's (a blank before each text) or Gemma's (none), as above."""
    tokenizer = Tokenizer(kinds.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    blanks = normalizers.Replace(" ", "▁")
    if blank_before:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    else:
        tokenizer.normalizer = blanks
        tokenizer.pre_tokenizer = cuts.Split(" ", "merged_with_previous")
    special = ["<unk>", "<s>", *SPECIAL, *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS.split(" "), trainer)
    pipeline: dict[str, Any] = json.loads(tokenizer.to_str())
    pipeline["added_tokens"] = [t for t in pipeline["added_tokens"] if not t["content"].startswith("<0x")]
    begin, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pipeline["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.token_to_id("<s>")], "tokens": ["<s>"]}},
    }
    return _save(pipeline, folder)


def _save(pipeline: dict[str, Any], folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(pipeline))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
