"""Passes: a step cut into calls of llama_decode, and the order of the tokens in each.

A call holds as much of the step as its bounds on tokens and rows allow. llama.cpp cuts it further, into
micro-batches that it computes one after the other, each of which reads all weights. With one memory for all
sequences, any tokens make a micro-batch. With streams, the sequences of a micro-batch must have ids that
follow one another in the order of the batch, and each gives it the same number of tokens. So single tokens
come first, by ascending lane, and make one micro-batch; small gaps between their lanes are closed with
throw-away tokens of idle lanes. On two cores, 8 sequences of a 0.5B model in every second lane take 3.4 times
as long as in neighbouring ones; filled gaps bring that down to 1.6. Longer shares come by descending lane, so
that each makes micro-batches of its own: in ascending order, shares of unequal lengths would fall into many
short ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

MAX_GAP = 4
"""Longest gap that is filled: a micro-batch more costs about as much as so many tokens of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """One chunk of a step: the positions to compute, with those before it whose content is missing."""

    seq: int
    lane: int
    tokens: Sequence[int]
    first: int
    """Position of the first of `tokens`."""
    leading: range
    """Rows, counted in `tokens`, that are passed on as they come."""
    answers: bool
    """The last row is wanted, to choose a token by or to pool."""
    states: bool = False
    """The rows are hidden states, not logits; one call gives one kind."""
    surplus: int = 0
    """So many of the last tokens are computed only to keep the others company."""
    whole: bool = False
    """A call gives all rows of its tokens, whether they are wanted or not."""

    @property
    def end(self) -> int:
        """Position after the last that is kept."""
        return self.first + len(self.tokens) - self.surplus


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a work that one call computes: its tokens from `begin` to `end` - 1."""

    work: Work
    begin: int
    end: int

    @property
    def leading(self) -> range:
        """Rows to pass on, counted in the work's tokens."""
        rows = self.work.leading
        return range(max(rows.start, self.begin), min(rows.stop, self.end))

    @property
    def rows(self) -> list[int]:
        """All rows that are wanted, counted in the share's tokens."""
        return [row - self.begin for row in (*self.leading, *[self.end - 1] * self.answers)]

    @property
    def answers(self) -> bool:
        """The share ends its work, and a token is wanted of that."""
        return self.work.answers and self.end == len(self.work.tokens)


def split_state_row(work: Work) -> list[Work]:
    """The work, or, where the last one is the only row and a hidden state, what is before it by itself.

    A call that gives hidden states applies the head to all of its tokens, so it is kept short.
    """
    if not (work.states and work.answers) or work.leading or len(work.tokens) == 1:
        return [work]
    before = replace(work, tokens=work.tokens[:-1], answers=False, states=False)
    last = replace(work, tokens=work.tokens[-1:], first=work.first + len(work.tokens) - 1, leading=range(0))
    return [before, last]


def cut(works: Sequence[Work], max_tokens: int, max_rows: int) -> Iterator[list[Share]]:
    """Shares for one call after the other, all works in the order of the module's docstring."""
    single = sorted((work for work in works if len(work.tokens) == 1), key=lambda work: work.lane)
    longer = sorted((work for work in works if len(work.tokens) > 1), key=lambda work: -work.lane)
    shares: list[Share] = []
    tokens, rows = max_tokens, max_rows
    for work in (*single, *longer):
        begin = 0
        while begin < len(work.tokens):
            share = _share(work, begin, tokens, rows)
            if share is None:
                yield shares
                shares, tokens, rows = [], max_tokens, max_rows
                continue
            shares.append(share)
            tokens -= share.end - begin
            rows -= len(share.leading) + share.answers
            begin = share.end
    if shares:
        yield shares


def _share(work: Work, begin: int, max_tokens: int, max_rows: int) -> Share | None:
    """As much of the work from `begin` on as the bounds allow; None where that is nothing."""
    end = min(len(work.tokens), begin + max_tokens)
    leading = work.leading
    end = min(end, max(begin, leading.start) + max_rows) if leading.stop > begin else end
    share = Share(work, begin, end)
    if share.answers and len(share.leading) + 1 > max_rows:
        share = Share(work, begin, end - 1)
    return share if share.end > begin else None


def gaps(shares: Sequence[Share]) -> Iterator[range]:
    """Lanes that lie between those of single tokens, where they are few enough to be filled."""
    lanes = [share.work.lane for share in shares if len(share.work.tokens) == 1]
    for lane, following in pairwise(lanes):
        if 1 < following - lane <= MAX_GAP + 1:
            yield range(lane + 1, following)
