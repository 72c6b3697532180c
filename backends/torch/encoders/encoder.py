"""Encoder: a transformers module that gives the hidden states of whole sequences, in padded groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ....errors import NotSupported
from ...worker import ModelInfo, Progress, WorkerConfig
from ..decoder.config import DTYPES, read_config
from ..modules.check import TOLERANCE
from ..modules.weights import foreign_code, read_module
from .padding import groups

_POOLER = "pooler."
"""Weights of a head that comes with many encoders, made for classification, and is not used."""
_CHECK_LENGTHS = (7, 3)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A module without a head; its tokens may see those that come after them."""

    module: PreTrainedModel
    pad_token_id: int
    hidden_size: int

    def states(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
        """(index, final hidden states [n, hidden]) of each of the sequences, in any order."""
        for group in groups([len(tokens) for tokens in sequences]):
            found = hidden_states(self.module, [sequences[i] for i in group], self.pad_token_id)
            for i, states in zip(group, found, strict=True):
                yield i, states[: len(sequences[i])]


@torch.inference_mode()
def hidden_states(module: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """[sequences, longest, hidden]; what stands behind a sequence's end means nothing."""
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    longest = int(lengths.max())
    padded = [[*tokens, *[pad_token_id] * (longest - len(tokens))] for tokens in sequences]
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.tensor(padded).to(module.device)
    states: Tensor = module(input_ids=ids, attention_mask=mask.to(module.device))[0]
    return states


def load_encoder(info: ModelInfo, config: WorkerConfig, progress: Progress) -> Encoder:
    """Read the weights, and check that a sequence's hidden states do not depend on its company.

    Raises:
        ModelFormatError: a weight file is missing, cut short or does not match the configuration.
        NotSupported: the model cannot run like this; the message says why.
    """
    dtype = DTYPES[config.dtype]
    model_config: Any = read_config(info.path)
    progress("weights", 0.0)
    module = read_module(AutoModel, info, model_config, dtype, torch.device(config.device), unused=_POOLER)
    module.config.use_cache = False
    progress("weights", 1.0)
    pad = getattr(model_config, "pad_token_id", None)
    pad_token_id = pad if isinstance(pad, int) and 0 <= pad < info.vocab_size else 0
    name = type(module).__name__
    hidden_size = _check(module, name, info, config, pad_token_id)
    progress("check", 1.0)
    return Encoder(module, pad_token_id, hidden_size)


def _check(
    module: PreTrainedModel, name: str, info: ModelInfo, config: WorkerConfig, pad_token_id: int
) -> int:
    """Compute two sequences together and alone; the width of their hidden states.

    Raises:
        NotSupported: they are not the same, or the module does not give hidden states of tokens.
    """
    lengths = [min(length, config.max_length) for length in _CHECK_LENGTHS]
    sequences = [
        [(101 + 7919 * (k + 10 * i)) % info.vocab_size for k in range(length)]
        for i, length in enumerate(lengths)
    ]
    with foreign_code(name, "padded sequences"):
        together = hidden_states(module, sequences, pad_token_id)
        alone = [hidden_states(module, [tokens], pad_token_id)[0] for tokens in sequences]
    if together.shape[:2] != (2, max(lengths)) or together.dim() != 3:
        raise NotSupported(f"{name} gives {list(together.shape)} instead of a hidden state for each token")
    found = torch.cat([states[:length] for states, length in zip(together, lengths, strict=True)]).float()
    expected = torch.cat(alone).float()
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    allowed = TOLERANCE[DTYPES[config.dtype]]
    if not difference <= allowed:
        raise NotSupported(
            f"{name} gives a sequence other hidden states beside others than alone (relative difference "
            f"{difference:.2g}, allowed {allowed:.2g}), so it is not run"
        )
    return int(together.shape[2])
