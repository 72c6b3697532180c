"""StepInputs: one Batch as tensors, the only thing a torch model sees of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A packed ragged batch of S chunks with T tokens in all; no padding between chunks.

    Chunk i owns rows `query_starts[i] : query_starts[i + 1]` of every per-token tensor, and its last token
    stands at position `context_lengths[i] - 1` of its sequence.
    """

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, position of each token in its sequence."""
    slot_mapping: Tensor
    """[T] int64, where each token's key and value go: block id * block_size + offset."""
    query_starts: tuple[int, ...]
    """S + 1 row offsets, from 0 to T."""
    context_lengths: tuple[int, ...]
    """S sequence lengths, this step's tokens included."""
    block_tables: Tensor
    """[S, longest table] int64, unused entries 0."""
    logit_rows: Tensor
    """[R] int64, the rows (of T) whose logits are wanted, ascending."""
    state_rows: Tensor
    """[E] int64, the rows (of T) whose final hidden states are wanted, ascending."""
    sequence_ids: tuple[int, ...]
    """S sequence ids, for state that a model keeps per sequence outside the blocks."""

    @property
    def output_rows(self) -> Tensor:
        """[R + E] int64, the rows that the last layer finishes: `logit_rows`, then `state_rows`."""
        return torch.cat((self.logit_rows, self.state_rows)) if len(self.state_rows) else self.logit_rows
