"""What the small files of a model say beside its architecture: lengths, ends, recommended sampling."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PretrainedConfig

from ....errors import ModelFormatError

GENERATION_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Fields of generation_config.json that are sampling parameters here, under the same names."""
LENGTH_FIELDS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Names under which configurations say the longest context."""
PADDED_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "lilt",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Families whose positions begin behind the padding token's id, so that as many are never used."""
UNSAID_LENGTHS = MappingProxyType({"bloom": 2048})
"""Families with linear position biases whose configurations leave it out, and what they were trained on."""


def max_length(text: PretrainedConfig) -> int:
    """Longest context, in tokens, that the model was made for.

    Raises:
        ModelFormatError: the configuration does not say.
    """
    said = (getattr(text, name, None) for name in LENGTH_FIELDS)
    found = next((length for length in said if isinstance(length, int)), UNSAID_LENGTHS.get(text.model_type))
    if found is None:
        raise ModelFormatError(f"the configuration of {text.model_type} has no max_position_embeddings")
    if text.model_type in PADDED_POSITIONS and isinstance(text.pad_token_id, int):
        return found - text.pad_token_id - 1
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn":
        return max(found, int(rope["original_max_position_embeddings"] * rope["factor"]))
    return found


def eos_token_ids(path: Path, config: PretrainedConfig) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json says, or else the configuration."""
    candidates = (
        _generation_config(path).get("eos_token_id"),
        getattr(config, "eos_token_id", None),
        getattr(config.get_text_config(decoder=True), "eos_token_id", None),
    )
    found = next((value for value in candidates if value is not None), ())
    return (found,) if isinstance(found, int) else tuple(found)


def generation_defaults(path: Path) -> dict[str, Any]:
    """The sampling fields that the model's author recommends."""
    said = _generation_config(path)
    return {name: said[name] for name in GENERATION_FIELDS if said.get(name) is not None}


def _generation_config(path: Path) -> dict[str, Any]:
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{file} cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise ModelFormatError(f"{file} holds no object")
    return said
