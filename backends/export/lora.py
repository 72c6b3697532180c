"""Writes a GGUF file from a PEFT adapter: the same matrices by other names, rows of queries and keys moved.

What PEFT adds to a matrix is scaling * B A, the scaling being alpha / rank, or alpha / rank ^ 1/2 ("rsLoRA");
llama.cpp takes one alpha per file and divides it by the rank of each pair.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from ...errors import ModelFormatError, NotSupported
from ..torch.decoder.config import decoder_config, read_config, text_config
from ..torch.files.checkpoint import FLOAT_TYPES, Checkpoint, TensorHeader, read_headers
from ..torch.files.model_info import max_length
from .file import write_tensors
from .metadata import find_architecture
from .tensors import GGUFTensor, TensorPlan

CONFIG_FILE, WEIGHT_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_PLAIN: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "use_dora": (None, False),
        "use_qalora": (None, False),
        "lora_bias": (None, False),
        "bias": (None, "none"),
        "fan_in_fan_out": (None, False),
        "modules_to_save": (None, []),
        "target_parameters": (None, []),
        "trainable_token_indices": (None, [], {}),
        "layer_replication": (None, []),
        "alora_invocation_tokens": (None, []),
    }
)
"""Settings of PEFT -> the values with which an adapter is plain low-rank matrices."""


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """A GGUF file that was written."""

    path: Path
    architecture: str
    rank: int
    """The largest one."""
    num_matrices: int
    num_parameters: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Scaling:
    """By what PEFT multiplies the product of each pair."""

    alpha: float
    alphas: Mapping[str, float]
    """For modules whose names end so."""
    stabilised: bool

    def of(self, module: str, rank: int) -> float:
        patterns = (pattern for pattern in self.alphas if re.fullmatch(rf"(.*\.)?({pattern})", module))
        alpha = self.alphas.get(next(patterns, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def write_adapter(checkpoint: Path, folder: Path, out: Path) -> ExportedAdapter:
    """Write the adapter in `folder` to the new file `out`; see `export_adapter` for the errors."""
    config = read_config(checkpoint)
    architecture = find_architecture(config)
    decoder = decoder_config(config, max_length(text_config(config)))
    base = Checkpoint(checkpoint)
    plan = TensorPlan(base, decoder, architecture, Kind.F32)
    targets = {tensor.source: tensor for tensor in plan.tensors()}
    scaling = _read_scaling(folder / CONFIG_FILE)
    # What pairs need beyond the one alpha of the file goes into their second matrix.
    alpha = scaling.alpha or 1.0
    tensors: list[GGUFTensor] = []
    ranks: list[int] = []
    for module, (down, up) in _read_pairs(folder / WEIGHT_FILE).items():
        header = base.headers.get(f"{module}.weight")
        target = targets.get(header) if header is not None else None
        if target is None or target.name == "token_embd.weight" or len(target.shape) != 2:
            raise NotSupported(f"the adapter in {folder} changes {module}, which is no layer of {checkpoint}")
        rank = _check_pair(folder, module, down, up, target)
        ranks.append(rank)
        factor = scaling.of(module, rank) * rank / alpha
        tensors += [
            GGUFTensor(f"{target.name}.lora_a", down.shape, Kind.F32, down),
            GGUFTensor(f"{target.name}.lora_b", up.shape, Kind.F32, up, target.order, factor=factor),
        ]
    writer = GGUFWriter(None, architecture.name)
    writer.add_type("adapter")
    writer.add_name(folder.resolve().name)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    write_tensors(writer, tensors, out, lambda share: None)
    return ExportedAdapter(
        path=out,
        architecture=architecture.name,
        rank=max(ranks),
        num_matrices=len(ranks),
        num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        num_bytes=out.stat().st_size,
    )


def _read_scaling(file: Path) -> _Scaling:
    try:
        said = json.loads(file.read_text())
        kind = said["peft_type"]
        found = _Scaling(
            float(said["lora_alpha"]),
            {str(name): float(alpha) for name, alpha in (said.get("alpha_pattern") or {}).items()},
            bool(said.get("use_rslora")),
        )
    except FileNotFoundError as error:
        raise ModelFormatError(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{file} is not the configuration of an adapter: {error!r}") from error
    if kind != "LORA":
        raise NotSupported(
            f"the adapter in {file.parent} is of the type {kind!r}; only 'LORA' can be exported"
        )
    for key, plain in _PLAIN.items():
        if said.get(key) not in plain:
            raise NotSupported(
                f"the adapter in {file.parent} has {key} = {json.dumps(said[key])}, which llama.cpp's "
                "adapters do not have"
            )
    return found


def _read_pairs(file: Path) -> dict[str, tuple[TensorHeader, TensorHeader]]:
    """Module of the model -> its two matrices."""
    if not file.is_file():
        raise ModelFormatError(f"{file.parent} has no {file.name}")
    headers = read_headers(file)
    pairs: dict[str, tuple[TensorHeader, TensorHeader]] = {}
    for name, header in headers.items():
        stem, suffix = name[: -len(_DOWN)], name[-len(_DOWN) :]
        if suffix not in (_DOWN, _UP) or not name.startswith(_PREFIX):
            raise NotSupported(f"{file} has the tensor {name}; only pairs of low rank can be exported")
        other = headers.get(stem + (_UP if suffix == _DOWN else _DOWN))
        if other is None:
            raise ModelFormatError(f"the other half of tensor {name} is missing in {file}")
        if suffix == _DOWN:
            pairs[stem.removeprefix(_PREFIX)] = header, other
    if not pairs:
        raise ModelFormatError(f"{file} has no tensors")
    return pairs


def _check_pair(folder: Path, module: str, down: TensorHeader, up: TensorHeader, target: GGUFTensor) -> int:
    """The pair's rank."""
    rank = down.shape[0] if down.shape else 0
    outputs, inputs = target.shape
    if rank < 1 or (down.shape, up.shape) != ((rank, inputs), (outputs, rank)):
        raise ModelFormatError(
            f"the adapter in {folder} has shapes {list(down.shape)} and {list(up.shape)} for {module}, which "
            f"is {list(target.shape)}"
        )
    for header in (down, up):
        if header.dtype not in FLOAT_TYPES:
            raise ModelFormatError(
                f"the adapter in {folder} has tensors of type {header.dtype}; "
                f"allowed: {', '.join(sorted(FLOAT_TYPES))}"
            )
    return rank
