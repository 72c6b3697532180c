"""TokenSampler: the interface of what draws tokens from rows of logits, each row as if it were alone.

Tokens are ordered by falling logit, equal logits by rising token id. Noise belongs to (seed, position, token
id). Implementations draw the same tokens, but for draws whose two first arrivals lie as near to each other as
single precision resolves exp.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .noise import Ints, Words

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_VOCAB = 2**20
"""Sort keys give a token id 20 bits."""


@dataclass(frozen=True, slots=True)
class Filters:
    """How n rows are drawn from, one entry per row."""

    temperature: Floats
    top_k: Ints
    """Tokens kept at most; the vocabulary's size where top-k is off."""
    top_p: Doubles
    """Infinity where top-p is off."""
    min_gap: Floats
    """Natural logarithm of min_p; minus infinity where it is off."""

    def take(self, rows: Ints) -> "Filters":
        """The entries of `rows`."""
        return Filters(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.min_gap[rows])


class TokenSampler(Protocol):
    """Draws from rows of as many logits as the vocabulary has tokens.

    Every method takes contiguous `logits` [m, vocab]; those with `rows` mean these n ascending indices alone.
    Their largest logits (`peaks` [n]) are finite; single logits may be minus infinity. Differences of logits
    may overflow to infinity, which is meant so; it is for the caller to silence NumPy's warning.
    """

    @property
    def block_rows(self) -> int:
        """Rows worth working on together."""
        ...

    def best(self, logits: Floats) -> tuple[Ints, Floats]:
        """Index of the first largest logit of each row, and that logit: [m] each. NaN exceeds any number."""
        ...

    def choose(self, logits: Floats, rows: Ints, peaks: Floats, filters: Filters, words: Words) -> Ints:
        """Token ids [n] drawn from what temperature, top_k, top_p and min_p leave of each row.

        `words` [n] are the rows' noise. Of tokens that arrive at the same time the smallest id is drawn.
        Top-p keeps the shortest run of leading tokens whose probability, among the top_k, reaches p; min-p
        keeps tokens of at least min_p times the likeliest one's probability. One token at least is kept.
        """
        ...

    def leading(self, logits: Floats, rows: Ints, width: int) -> tuple[Ints, Floats]:
        """Ids and logits [n, width] of the leading tokens of each row, best first.

        Where fewer than `width` tokens are finite, the rest is token 0 with minus infinity.
        """
        ...

    def log_totals(self, logits: Floats, rows: Ints, peaks: Floats) -> Doubles:
        """log(sum(exp(logits))) [n] of each row."""
        ...
