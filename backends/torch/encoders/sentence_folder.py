"""SentenceFolder: what sentence-transformers' files beside a checkpoint say about its embeddings.

modules.json lists the modules that a text goes through: the model, a pooling, perhaps dense layers, perhaps
a normalisation; each has a folder with a config.json.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import ModelFormatError, NotSupported
from ....scheduler.batch import Pooling
from ...answers.pooling import Vector
from ..files.checkpoint import FLOAT_TYPES, Checkpoint, TensorReader

MODULES_FILE = "modules.json"
_POOLINGS: Mapping[str, Pooling] = MappingProxyType(
    {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}
)
"""By the names in a pooling's configuration."""
_FLAG = "pooling_mode_"
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "Identity": lambda x: x,
        "Tanh": torch.tanh,
        "ReLU": torch.relu,
        "GELU": torch.nn.functional.gelu,
        "Sigmoid": torch.sigmoid,
        "SiLU": torch.nn.functional.silu,
    }
)
"""By the names of torch's classes."""
_MAX_LAYER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class DenseFolder:
    """A dense layer behind the pooling."""

    path: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class SentenceFolder:
    """What the modules of a folder do to hidden states; the defaults are those of a plain checkpoint."""

    pooling: Pooling | None = None
    """None: the folder does not say."""
    dense: tuple[DenseFolder, ...] = ()
    normalizes: bool | None = None
    """Whether its authors scale embeddings to length 1; None: the folder does not say."""
    max_length: int | None = None
    """Tokens at which its authors cut texts off."""

    def output_size(self, hidden_size: int) -> int:
        """Numbers in an embedding that is made of hidden states of that size.

        Raises:
            ModelFormatError: a dense layer takes vectors of another size.
        """
        size = hidden_size
        for layer in self.dense:
            if layer.inputs != size:
                raise ModelFormatError(
                    f"{layer.path} takes vectors of {layer.inputs} numbers; {size} come in"
                )
            size = layer.outputs
        return size


def read_sentence_folder(path: Path) -> SentenceFolder:
    """What the files in a model's folder say; a folder without modules.json says nothing.

    Raises:
        ModelFormatError: a file is missing or cannot be read.
        NotSupported: a text goes through something that is not done here; the message says what.
    """
    if not (path / MODULES_FILE).is_file():
        return SentenceFolder()
    modules = _read(path / MODULES_FILE, list)
    kinds = [_kind(path, module) for module in modules]
    names = [kind for kind, _ in kinds]
    dense = names.count("Dense")
    expected = ["Transformer", "Pooling", *["Dense"] * dense]
    if names not in (expected, [*expected, "Normalize"]):
        raise NotSupported(
            f"{path / MODULES_FILE} lists the modules {', '.join(names)}; allowed: Transformer, Pooling, "
            "then Dense any number of times, then Normalize or nothing"
        )
    return SentenceFolder(
        pooling=_pooling(kinds[1][1] / "config.json"),
        dense=tuple(_dense(folder) for _, folder in kinds[2 : 2 + dense]),
        normalizes=names[-1] == "Normalize",
        max_length=_max_length(path),
    )


class DenseLayers:
    """The dense layers of a folder; a Projection."""

    def __init__(self, folders: tuple[DenseFolder, ...]) -> None:
        """Read the weights.

        Raises:
            ModelFormatError: a weight is missing, damaged or of another shape.
        """
        self._layers = [(*_read_weights(folder), _ACTIVATIONS[folder.activation]) for folder in folders]

    def __call__(self, vector: Vector) -> Vector:
        """See Projection; in float64, so that nothing is lost."""
        x = torch.from_numpy(vector)
        for weight, bias, activation in self._layers:
            x = activation(torch.nn.functional.linear(x, weight, bias))
        result: Vector = np.asarray(x.numpy(), np.float64)
        return result


def _kind(path: Path, module: object) -> tuple[str, Path]:
    """Class name and folder of one entry of modules.json."""
    if isinstance(module, dict) and isinstance(module.get("type"), str):
        folder = module.get("path", "")
        if isinstance(folder, str) and ".." not in Path(folder).parts and not Path(folder).is_absolute():
            return module["type"].rpartition(".")[2], path / folder
    raise ModelFormatError(f"{path / MODULES_FILE} has the entry {module!r}; expected are a type and a path")


def _pooling(file: Path) -> Pooling:
    said = _read(file, dict)
    mode = said.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or ())
    flags = [
        name.removeprefix(_FLAG).removesuffix("_tokens").removesuffix("_token")
        for name in said
        if said[name] is True and name.startswith(_FLAG)
    ]
    modes = modes or flags
    found = [_POOLINGS.get(name) for name in modes]
    if len(found) != 1 or found[0] is None:
        asked = " and ".join(map(str, modes)) or "nothing"
        raise NotSupported(f"{file} asks for pooling by {asked}; allowed: one of {', '.join(_POOLINGS)}")
    return found[0]


def _dense(folder: Path) -> DenseFolder:
    file = folder / "config.json"
    said = _read(file, dict)
    activation = str(said.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise NotSupported(f"{file} has the activation {activation}; allowed: {', '.join(_ACTIVATIONS)}")
    for name in ("module_input_name", "module_output_name"):
        if said.get(name, "sentence_embedding") not in (None, "sentence_embedding"):
            raise NotSupported(f"{file} has {name} {said[name]!r}; allowed: 'sentence_embedding'")
    inputs, outputs = said.get("in_features"), said.get("out_features")
    if not (isinstance(inputs, int) and isinstance(outputs, int) and inputs > 0 and outputs > 0):
        raise ModelFormatError(f"{file} has in_features {inputs!r} and out_features {outputs!r}")
    return DenseFolder(folder, inputs, outputs, bool(said.get("bias", True)), activation)


def _read_weights(folder: DenseFolder) -> tuple[Tensor, Tensor | None]:
    """Weight [outputs, inputs] and bias [outputs] in float64."""
    headers = Checkpoint(folder.path).headers
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (folder.outputs, folder.inputs)}
    if folder.bias:
        shapes["linear.bias"] = (folder.outputs,)
    found = []
    for name, shape in shapes.items():
        header = headers.get(name)
        if header is None:
            raise ModelFormatError(f"tensor {name} is missing in {folder.path}")
        if header.shape != shape or header.dtype not in FLOAT_TYPES or header.num_bytes > _MAX_LAYER_BYTES:
            has = f"{list(header.shape)} of {header.dtype}"
            raise ModelFormatError(f"tensor {name} in {header.file} is {has}; expected is {list(shape)}")
        with header.file.open("rb") as opened:
            reader = TensorReader(opened, header.num_bytes)
            found.append(torch.cat([piece.double() for _, piece in reader.pieces(header)]))
    return found[0], found[1] if folder.bias else None


def _max_length(path: Path) -> int | None:
    """The bound of the Transformer module; its file is called after the kind of model."""
    for file in sorted(path.glob("sentence_*_config.json")):
        said = _read(file, dict)
        if said.get("do_lower_case") is True and not _lowers(path):
            raise NotSupported(
                f"{file} asks for texts in lower case, which the model's tokenizer does not make"
            )
        length = said.get("max_seq_length")
        if length is not None and not (isinstance(length, int) and length > 0):
            raise ModelFormatError(f"{file} has max_seq_length {length!r}; expected is a number above 0")
        return length
    return None


def _lowers(path: Path) -> bool:
    file = path / "tokenizer_config.json"
    return file.is_file() and _read(file, dict).get("do_lower_case") is True


def _read(file: Path, kind: type) -> Any:
    """A JSON file that holds a list or an object."""
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelFormatError(f"{file} cannot be read: {error}") from error
    if not isinstance(said, kind):
        raise ModelFormatError(f"{file} holds no {'list' if kind is list else 'object'}")
    return said
