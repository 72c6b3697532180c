"""PagedModel: what the torch worker runs, be it the native decoder or a transformers module."""

from typing import Protocol

from torch import Tensor

from .inputs import StepInputs


class PagedModel(Protocol):
    """A language model whose keys and values live in a paged cache that it holds itself."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Write the keys and values of the step's tokens and give the wanted logits.

        Tokens may be run again, if all that follow them in their sequence are, too: a step may forget what
        stands behind a slice's last token in the same block.

        Returns:
            [R, vocab] float32, one row for each of `inputs.logit_rows`; the head is applied to no other row.
            The next call may use the same memory.
        """
