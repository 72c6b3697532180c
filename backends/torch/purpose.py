"""Purpose: what a checkpoint was made for, as its configuration says: texts, or embeddings."""

from enum import Enum
from pathlib import Path

from transformers import PretrainedConfig

from ...errors import NotSupported
from .decoder.config import attends_both_ways, is_native, text_config
from .encoders.sentence_folder import MODULES_FILE

_HEADLESS = ("Model", "ForMaskedLM", "ForPreTraining")
"""Ends of the names of classes that have no head, or one that is left away: it predicts hidden tokens."""
_CLASSIFIERS = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction")


class Purpose(Enum):
    """What a model gives, and on what it runs."""

    TEXT = "text"
    """It generates, and gives embeddings besides."""
    CAUSAL_EMBEDDINGS = "causal embeddings"
    """The native decoder runs it, without a head."""
    EMBEDDINGS = "embeddings"
    """Its tokens may see those that come after them: whole sequences go through transformers' module."""


def purpose(config: PretrainedConfig, path: Path) -> Purpose:
    """Decided by the class that the weights were saved from; without one, by sentence-transformers' files.

    Raises:
        NotSupported: it is a classifier.
    """
    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith(_CLASSIFIERS):
        raise NotSupported(f"{path} is a {name}, which gives neither texts nor embeddings")
    headless = name.endswith(_HEADLESS) and "LMHead" not in name
    if not name:
        headless = (path / MODULES_FILE).is_file() and not is_native(config)
    if getattr(config, "is_encoder_decoder", False):
        return Purpose.TEXT  # refused as such
    if not (headless or attends_both_ways(text_config(config))):
        return Purpose.TEXT
    return Purpose.CAUSAL_EMBEDDINGS if is_native(config) else Purpose.EMBEDDINGS
