"""PagedModel: what the torch worker runs, be it the native decoder or a transformers module."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .kernels.step_inputs import StepInputs


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a model gives for the rows that a step wants something of. The next step may use its memory."""

    logits: Tensor
    """[R, vocab] float32, one row for each of `StepInputs.logit_rows`."""
    states: Tensor
    """[E, hidden], what the head reads: one row for each of `StepInputs.state_rows`."""


class PagedModel(Protocol):
    """A language model whose keys and values live in a paged cache that it holds itself."""

    def forward(self, inputs: StepInputs) -> StepOutputs:
        """Write the keys and values of the step's tokens and give the wanted rows.

        Tokens may be run again, if all that follow them in their sequence are, too: a step may forget what
        stands behind a chunk's last token in the same block. The head reads the logit rows alone.
        """
