"""The header of an adapter (LoRA) in a GGUF file, and the checks that llama.cpp makes by aborting, or not."""

from pathlib import Path

from ...errors import LimitExceeded, ModelFormatError, NotSupported
from ..gguf.gguf_file import GGUFFile, TensorInfo, read_gguf
from ..gguf.model_file import GGUFModel

TENSOR_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""Types of an adapter's matrices that llama.cpp multiplies with."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_DOWN, _UP = ".lora_a", ".lora_b"
_ALPHA = "adapter.lora.alpha"


def check_adapter(path: Path, model: GGUFModel, max_rank: int | None) -> int:
    """The rank of the adapter at `path`, which fits `model`.

    Raises:
        ModelFormatError: it is no adapter in a whole GGUF file, or made for another model.
        LimitExceeded: its rank is above `max_rank`.
        NotSupported: it changes more than llama.cpp does.
    """
    if path.is_dir():
        raise ModelFormatError(
            f"{path} is a folder; llama.cpp takes adapters as .gguf files, which "
            "python -m millstream.backends.export.adapter writes"
        )
    file = read_gguf(path)
    _check_kind(file, model)
    tensors = {tensor.name: tensor for file in model.files for tensor in file.tensors}
    ranks = [_check_pair(path, name, pair, tensors) for name, pair in _pairs(file).items()]
    rank = max(ranks)
    if max_rank is not None and rank > max_rank:
        raise LimitExceeded(f"the adapter in {path} has rank {rank}; at most {max_rank} is allowed")
    return rank


def _check_kind(file: GGUFFile, model: GGUFModel) -> None:
    kind, method = file.text("general.type") or "model", file.text("adapter.type")
    if kind != "adapter" or method != "lora":
        found = f"adapter.type {method!r}" if kind == "adapter" else f"general.type {kind!r}"
        raise ModelFormatError(f"{file.path} is no LoRA adapter but a GGUF file of {found}")
    architecture = file.text("general.architecture")
    if architecture != model.architecture:
        raise ModelFormatError(
            f"the adapter in {file.path} is made for the architecture {architecture!r}; "
            f"{model.path} is of {model.architecture!r}"
        )
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise NotSupported(
            f"{file.path} is an activated LoRA, which takes effect only after certain tokens; "
            "such adapters are not run"
        )
    if _ALPHA in file.metadata and not file.is_float32(_ALPHA):
        raise ModelFormatError(f"{file.path} is damaged: {_ALPHA} is not a number of the type f32")


def _pairs(file: GGUFFile) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Name of a matrix of the model -> what goes down to the rank, and up again."""
    found = {tensor.name: tensor for tensor in file.tensors}
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
    for name, tensor in found.items():
        base, suffix = name[: -len(_DOWN)], name[-len(_DOWN) :]
        if suffix not in (_DOWN, _UP):
            raise NotSupported(
                f"the adapter in {file.path} has the tensor {name!r}; only pairs of low rank are added"
            )
        other = found.get(base + (_UP if suffix == _DOWN else _DOWN))
        if other is None:
            raise ModelFormatError(f"{file.path} is damaged: the other half of {name!r} is missing")
        if suffix == _DOWN:
            pairs[base] = tensor, other
    if not pairs:
        raise ModelFormatError(f"{file.path} is damaged: the adapter has no tensors")
    return pairs


def _check_pair(
    path: Path, name: str, pair: tuple[TensorInfo, TensorInfo], tensors: dict[str, TensorInfo]
) -> int:
    """The pair's rank."""
    weight = tensors.get(name)
    if weight is None or len(weight.shape) < 2 or not name.endswith(".weight"):
        raise ModelFormatError(f"the adapter in {path} changes {name!r}, which is no matrix of this model")
    if name.endswith("token_embd.weight") and (name != EMBEDDING or HEAD not in tensors):
        raise NotSupported(
            f"the adapter in {path} changes {name!r}, which llama.cpp does only where it is the embedding "
            "and not the head, too"
        )
    if weight.type.name == "NVFP4":
        raise NotSupported(f"the adapter in {path} changes {name!r}, which is in NVFP4")
    down, up = pair
    for tensor in pair:
        if tensor.type.name not in TENSOR_TYPES:
            raise ModelFormatError(
                f"the adapter in {path} has {tensor.name!r} of type {tensor.type.name}; "
                f"allowed: {', '.join(TENSOR_TYPES)}"
            )
    rank = up.shape[0] if up.shape else 0
    inputs, outputs, *experts = weight.shape
    wanted = ((inputs, rank, *experts), (rank, outputs, *experts))
    if name == EMBEDDING:  # rows of the one are looked up, so it is the other way round
        wanted = ((rank, outputs), (rank, inputs))
    if rank < 1 or (down.shape, up.shape) != wanted:
        raise ModelFormatError(
            f"the adapter in {path} has the shapes {list(down.shape)} and {list(up.shape)} for {name!r} of "
            f"{list(weight.shape)}: it is made for another model"
        )
    return rank
