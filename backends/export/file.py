"""Writes a GGUF file from a checkpoint, one tensor at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType

from ...errors import ModelError
from ..torch.decoder.config import decoder_config, read_config, text_config
from ..torch.files.checkpoint import Checkpoint
from ..torch.files.model_info import eos_token_ids, max_length
from .metadata import check_architecture, context_length, find_architecture, write_hyperparameters, write_rope
from .tensors import GGUFTensor, TensorPlan
from .tokenizer import read_vocabulary

FILE_TYPES = MappingProxyType(
    {
        "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
        "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
        "f32": (Kind.F32, LlamaFileType.ALL_F32),
        "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
        "q4_0": (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    }
)
"""Type of matrices, and of the file as a whole, by the names in EXPORT_TYPES."""


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A GGUF file that was written."""

    path: Path
    architecture: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    context_length: int


def write_model(folder: Path, out: Path, kind: str, progress: Callable[[float], None]) -> ExportedModel:
    """Write the model in `folder` to the new file `out`; see `export.export_gguf` for the errors."""
    config = read_config(folder)
    architecture = find_architecture(config)
    text = text_config(config)
    decoder = decoder_config(config, max_length(text))
    check_architecture(text, decoder, architecture)
    matrix_type, file_type = FILE_TYPES[kind]
    writer = GGUFWriter(None, architecture.name)
    writer.add_type("model")
    writer.add_name(folder.resolve().name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hyperparameters(writer, text, decoder, architecture)
    tensors = write_rope(writer, text, decoder, architecture)
    read_vocabulary(
        folder,
        decoder.vocab_size,
        eos_token_ids(folder, config),
        getattr(text, "bos_token_id", None),
        getattr(text, "pad_token_id", None),
    ).write(writer)
    tensors += TensorPlan(Checkpoint(folder), decoder, architecture, matrix_type).tensors()
    num_parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    writer.add_size_label(gguf.size_label(num_parameters, 0, 0, 0))
    write_tensors(writer, tensors, out, progress)
    return ExportedModel(
        path=out,
        architecture=architecture.name,
        num_tensors=len(tensors),
        num_parameters=num_parameters,
        num_bytes=out.stat().st_size,
        context_length=context_length(decoder, architecture),
    )


def write_tensors(
    writer: GGUFWriter, tensors: list[GGUFTensor], out: Path, progress: Callable[[float], None]
) -> None:
    """Write all to a file beside `out` that gets its name when it is whole.

    Raises:
        ModelError: the file cannot be written.
    """
    for tensor in tensors:
        # The writer takes the shape of an array of bytes for one in bytes; no other element type matters.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, tensor.kind)
    total = sum(tensor.num_bytes for tensor in tensors)
    done = 0
    part = out.with_name(f".{out.name}.part")
    try:
        writer.write_header_to_file(part)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        progress(0.0)
        for tensor in tensors:
            writer.write_tensor_data(tensor.data())
            done += tensor.num_bytes
            progress(done / total)
        writer.close()
        part.rename(out)
    except OSError as error:
        raise ModelError(f"writing {out} failed: {error}") from error
    finally:
        writer.close()
        part.unlink(missing_ok=True)
