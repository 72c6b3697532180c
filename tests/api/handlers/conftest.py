"""Tokenizers and chat templates in the manner of the families, without any model's files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from millstream.api.handlers import ModelHandler, handler_for
from millstream.backends.text.tokenizer import HFTokenizer
from millstream.backends.worker import ModelInfo

SPECIAL = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
)


def byte_tokenizer(template: str | None, special: tuple[str, ...] = SPECIAL, **settings) -> HFTokenizer:
    """One token a byte, the special ones, and `plain` ones that are written out like words."""
    letters = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pipeline = Tokenizer(models.BPE(vocab=letters, merges=[]))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    plain = settings.pop("plain", ())
    pipeline.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return HFTokenizer(
        pipeline,
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        chat_templates={} if template is None else {"default": template},
        **settings,
    )


def model_info(architecture: str, tokenizer: HFTokenizer) -> ModelInfo:
    return ModelInfo(
        name="model",
        path=Path("model"),
        backend="torch",
        architecture=architecture,
        num_parameters=0,
        vocab_size=300,
        max_length=1000,
        eos_token_ids=tokenizer.eos_token_ids,
        generation_defaults={"temperature": 0.5},
    )


@pytest.fixture
def make_handler() -> Callable[..., ModelHandler]:
    """A handler by architecture and template; more keywords go to `byte_tokenizer`."""

    def make(architecture: str, template: str | None, **settings) -> ModelHandler:
        override = settings.pop("chat_template", None)
        tokenizer = byte_tokenizer(template, **settings)
        return handler_for(model_info(architecture, tokenizer), tokenizer, override)

    return make


@pytest.fixture
def text_of() -> Callable[..., str]:
    """The text of a prompt, special tokens included."""

    def text(handler: ModelHandler, messages, **keywords) -> str:
        return handler.tokenizer.decode(handler.prompt(messages, **keywords), skip_special_tokens=False)

    return text
