"""What the names of .gguf files say: which files are one model in parts, and in which quantisation.

Names are relative to their folder or repository and use "/" between folders.
"""

import re
from collections.abc import Iterable

import msgspec

from ...errors import ModelFormatError, ModelNotFound

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_QUANTISATION = re.compile(
    r"(?:.*?[-._/])??((?:UD-)?(?:I?Q\d+|TQ\d+|MXFP\d+|NVFP\d+|BF16|F16|FP16|F32|FP32)(?:_[A-Z0-9]+)*)",
    re.IGNORECASE,
)
_OTHER_USES = re.compile(r"(mmproj|imatrix)", re.IGNORECASE)
"""Projectors of vision models and statistics for quantising; they are no language models."""


class GGUFModelName(msgspec.Struct, frozen=True):
    """One model among the names of a folder: all its parts, in order."""

    parts: tuple[str, ...]
    quantisation: str | None
    """As the name spells it ("Q4_K_M"); None where it says none."""

    @property
    def first(self) -> str:
        """The part that stands for the whole model."""
        return self.parts[0]


def is_gguf(name: str) -> bool:
    """Whether the name ends in .gguf, in either case."""
    return name.lower().endswith(".gguf")


def parts_of(name: str) -> tuple[str, ...]:
    """Names of all parts of the model that `name` is a part of; (name,) for a model in one file."""
    part = _PART.fullmatch(name)
    if part is None:
        return (name,)
    stem, count, suffix = part[1], int(part[3]), name[-5:]
    return tuple(f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1))


def quantisation_of(name: str) -> str | None:
    """The quantisation that a file's name ends with, as it is spelt there."""
    part = _PART.fullmatch(name)
    stem = part[1] if part else name[: -len(".gguf")]
    found = _QUANTISATION.fullmatch(stem.rpartition("/")[2])
    return found[1] if found else None


def models_among(names: Iterable[str]) -> tuple[GGUFModelName, ...]:
    """The models that the .gguf files among `names` belong to, also those of which parts are missing."""
    found: dict[str, GGUFModelName] = {}
    for name in sorted(names):
        if is_gguf(name) and not _OTHER_USES.search(name.rpartition("/")[2]):
            parts = parts_of(name)
            found.setdefault(parts[0], GGUFModelName(parts, quantisation_of(name)))
    return tuple(found.values())


def choose_model(names: Iterable[str], wanted: str | None, where: str) -> GGUFModelName:
    """The one model among `names` that is meant.

    Args:
        wanted: a quantisation in either case ("Q4_K_M") or a file's name; None means the only model.
        where: the folder or repository, as the user would write it in front of ":".

    Raises:
        ModelNotFound: none is `wanted`; the sentence lists those there are.
        ModelFormatError: several are meant, or there is no .gguf file.
    """
    models = models_among(names)
    if not models:
        raise ModelFormatError(f"{where} has no .gguf model")
    fitting = [model for model in models if wanted is None or _is_wanted(model, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ModelNotFound(f"{where} has no .gguf model {wanted!r}; it has {_listed(models)}")
    raise ModelFormatError(
        f"{where} has {len(fitting)} .gguf models{'' if wanted is None else f' called {wanted!r}'}: "
        f"name one of them, {_examples(where, fitting)}"
    )


def _is_wanted(model: GGUFModelName, wanted: str) -> bool:
    if is_gguf(wanted):
        return wanted in model.parts or wanted == model.first.rpartition("/")[2]
    return model.quantisation is not None and model.quantisation.lower() == wanted.lower()


def _listed(models: Iterable[GGUFModelName]) -> str:
    return ", ".join(model.quantisation or model.first for model in models)


def _examples(where: str, models: list[GGUFModelName]) -> str:
    """How to write each model; by its file where its quantisation is not its alone."""
    labels = [(model.quantisation or "").lower() for model in models]
    return " or ".join(
        f"{where}:{model.quantisation if label and labels.count(label) == 1 else model.first}"
        for model, label in zip(models, labels, strict=True)
    )
