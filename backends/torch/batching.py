"""StepBuilder: turns a Batch into StepInputs, in a few microseconds per chunk."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...scheduler.batch import Chunk
from .kernels.step_inputs import StepInputs


class StepBuilder:
    """Keeps each sequence's block table as a row of one array; a step only adds what is new to it."""

    def __init__(self, max_num_seqs: int, max_length: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._tables: NDArray[np.int64] = np.zeros(
            (max_num_seqs, -(-max_length // block_size)), dtype=np.int64
        )
        self._known = [0] * max_num_seqs

    def forget(self, seq: int) -> None:
        """The next chunk of `seq` brings a new table."""
        self._tables[seq, : self._known[seq]] = 0
        self._known[seq] = 0

    def build(
        self, chunks: Sequence[Chunk], rows: Sequence[int], state_rows: Sequence[int] = ()
    ) -> StepInputs:
        """Inputs of a step that wants the logits of `rows` and the hidden states of `state_rows`.

        Both are ascending rows of the packed tokens.
        """
        tokens: list[int] = []
        query_starts = [0]
        starts = []
        sequences = []
        lengths = []
        for chunk in chunks:
            seq = chunk.seq
            known = self._known[seq]
            if len(chunk.blocks) > known:
                self._tables[seq, known : len(chunk.blocks)] = chunk.blocks[known:]
                self._known[seq] = len(chunk.blocks)
            tokens += chunk.tokens
            query_starts.append(len(tokens))
            starts.append(chunk.start)
            sequences.append(seq)
            lengths.append(chunk.start + len(chunk.tokens))
        of_seq, positions = self._spread(sequences, starts, query_starts)
        size = self._block_size
        slots = self._tables[of_seq, positions // size] * size + positions % size
        width = -(-max(lengths) // size)
        return StepInputs(
            token_ids=self._tensor(np.array(tokens, dtype=np.int64)),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            query_starts=tuple(query_starts),
            context_lengths=tuple(lengths),
            block_tables=self._tensor(self._tables[sequences, :width]),
            logit_rows=self._tensor(np.array(rows, dtype=np.int64)),
            state_rows=self._tensor(np.array(state_rows, dtype=np.int64)),
            sequence_ids=tuple(sequences),
        )

    @staticmethod
    def _spread(
        sequences: list[int], starts: list[int], query_starts: list[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sequence id and position of each token."""
        firsts = np.array(starts, dtype=np.int64)
        of_seq = np.array(sequences, dtype=np.int64)
        total = query_starts[-1]
        if total == len(sequences):
            return of_seq, firsts
        begins = np.array(query_starts, dtype=np.int64)
        counts = np.diff(begins)
        positions = np.arange(total, dtype=np.int64) + np.repeat(firsts - begins[:-1], counts)
        return np.repeat(of_seq, counts), positions

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
