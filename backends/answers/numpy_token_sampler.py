"""NumpyTokenSampler: draws tokens from rows of logits by NumPy; the reference of every other TokenSampler.

A draw is an exponential race (the Gumbel-max trick without its logarithm): token i of weight w = exp((logit -
peak) / temperature) arrives at e / w, where e is standard exponential noise that belongs to (seed, position,
token id); the first to arrive is drawn, with a probability in proportion to its weight. A rounding error in
the logits changes a draw only where the two first arrivals are as near to each other, and a token that enters
or leaves the kept set only where it is itself the first.

Rows are worked on together, and in groups that depend on all of them, yet bit by bit as if each were alone:
every step is elementwise, a selection by exact comparison, a running sum from left to right, or a sum over
the outer axis of a tiling, which NumPy adds elementwise layer by layer. None of these depends on which rows
stand beside it, nor on how many of a row's leading tokens were looked at.
"""

from collections.abc import Iterator

import numpy as np

from .noise import Bits, Ints, TokenNoise, Words
from .token_sampler import MAX_VOCAB, Bools, Doubles, Filters, Floats

_MAX_GROUP = 2**11
"""Sort keys give a row 11 bits."""
_GROUP_ELEMENTS = 2**20
"""Leading tokens ranked at once."""
_BLOCK_ELEMENTS = 2**17
"""Logits worked on at once: half a megabyte, so that the steps on a block meet in the second-level cache."""
_LAYERS = 32
RUNGS = (64, 1024, 16384)
"""Numbers of leading tokens to look at, one after the other until they decide; at last, all."""
_LATEST_PEAK = 23.0
"""More than 33 * log(2), the largest noise."""
_SLACK = 1e-4
"""More than what rounding to single precision can do to (logit - peak) / temperature above -10."""
_LOWEST = np.finfo(np.float32).min


class NumpyTokenSampler:
    """Draws from rows of `vocab_size` logits; holds sizes and the noise's table."""

    def __init__(self, vocab_size: int, rungs: tuple[int, ...] = RUNGS) -> None:
        self._vocab_size = vocab_size
        self._rungs = (*(width for width in rungs if 4 * width <= vocab_size), vocab_size)
        self._noise = TokenNoise(vocab_size)
        # The vocabulary is tiled into layers of `columns` tokens: column c holds c, c + columns, and so on.
        self._columns = vocab_size // _LAYERS if vocab_size >= 64 * _LAYERS else vocab_size
        self.block_rows = max(1, _BLOCK_ELEMENTS // vocab_size)

    def best(self, logits: Floats) -> tuple[Ints, Floats]:
        """See `TokenSampler.best`."""
        ids = logits.argmax(axis=1)
        return ids, logits[np.arange(len(ids)), ids]

    def choose(self, logits: Floats, rows: Ints, peaks: Floats, filters: Filters, words: Words) -> Ints:
        """See `TokenSampler.choose`."""
        chosen = np.empty(len(rows), np.int64)
        whole = (filters.top_k >= self._vocab_size) & np.isinf(filters.top_p) & np.isinf(filters.min_gap)
        picks = np.flatnonzero(whole)
        if picks.size:
            chosen[picks] = self._draw_whole(
                logits, rows[picks], peaks[picks], filters.temperature[picks], words[picks]
            )
        picks = np.flatnonzero(~whole)
        if picks.size:
            chosen[picks] = self._draw_leading(
                logits, rows[picks], peaks[picks], filters.take(picks), words[picks]
            )
        return chosen

    def leading(self, logits: Floats, rows: Ints, width: int) -> tuple[Ints, Floats]:
        """See `TokenSampler.leading`."""
        if len(rows) > _MAX_GROUP:
            head_ids, head = self.leading(logits, rows[:_MAX_GROUP], width)
            tail_ids, tail = self.leading(logits, rows[_MAX_GROUP:], width)
            return np.concatenate([head_ids, tail_ids]), np.concatenate([head, tail])
        keys = np.concatenate([*self._candidate_keys(logits, rows, width)])
        keys.sort()
        counts = np.bincount(keys >> 52, minlength=len(rows))
        starts = np.cumsum(counts) - counts
        ranks = np.arange(width)
        exists = ranks < counts[:, None]
        ids = np.where(exists, keys[np.where(exists, starts[:, None] + ranks, 0)] & (MAX_VOCAB - 1), 0)
        return ids, np.where(exists, logits[rows[:, None], ids], np.float32(-np.inf))

    def log_totals(self, logits: Floats, rows: Ints, peaks: Floats) -> Doubles:
        """See `TokenSampler.log_totals`."""
        return np.log(self._totals(logits, rows, peaks, np.ones(len(rows), np.float32))) + peaks

    def _draw_whole(
        self, logits: Floats, rows: Ints, peaks: Floats, temperature: Floats, words: Words
    ) -> Ints:
        """Draw from all tokens, looking closely at those alone that can be the first to arrive.

        A sample of the tokens and the peak, which arrives at 23 at the latest, tell by when the first one
        does. With e = -log(1 - v) >= v, a token whose v is not below `rare` must weigh more than `rare`
        through that time to be as early. The sizes balance the sample, the tokens of rare noise and those
        of such weight, where many tokens share the weight.
        """
        chosen = np.empty(len(rows), np.int64)
        stride = max(1, round(self._vocab_size**0.5 / 8))
        rare = min(0.5, 2 / self._vocab_size**0.5)
        shape = (min(self.block_rows, len(rows)), self._vocab_size)
        all_bits, scratch = np.empty(shape, np.uint32), np.empty(shape, np.uint32)
        for block in self._blocks(len(rows)):
            part, peak, heat = _rows(logits, rows[block]), peaks[block], temperature[block]
            bits = all_bits[: len(part)]
            self._noise.fill(bits, scratch[: len(part)], words[block])

            sample = _gaps(part[:, ::stride], peak[:, None], heat[:, None])
            limit = np.minimum(_arrivals(sample, bits[:, ::stride]).min(axis=1), _LATEST_PEAK)
            floor = (peak + (np.log(rare / limit) - _SLACK) * heat).astype(np.float32)
            able = part >= np.nextafter(floor, np.float32(-np.inf))[:, None]
            able |= bits < np.uint32(rare * 2**32)

            places = np.flatnonzero(able)
            row = places // self._vocab_size
            gaps = _gaps(part.ravel()[places], peak[row], heat[row])
            arrivals = _arrivals(gaps, bits.ravel()[places])
            starts = np.searchsorted(row, np.arange(len(part)))
            ties = np.flatnonzero(arrivals == np.minimum.reduceat(arrivals, starts)[row])
            firsts = places[ties[np.searchsorted(ties, starts)]]
            chosen[block] = firsts % self._vocab_size
        return chosen

    def _draw_leading(
        self, logits: Floats, rows: Ints, peaks: Floats, filters: Filters, words: Words
    ) -> Ints:
        """Draw from the leading tokens, looking at no more of them than is needed."""
        chosen = np.empty(len(rows), np.int64)
        has_k = filters.top_k < self._vocab_size
        totals = np.zeros(len(rows))
        nucleus = np.flatnonzero(~has_k & np.isfinite(filters.top_p))
        if nucleus.size:
            totals[nucleus] = self._totals(
                logits, rows[nucleus], peaks[nucleus], filters.temperature[nucleus]
            )
        rungs = np.where(has_k, np.searchsorted(self._rungs, filters.top_k), 0)
        for rung, width in enumerate(self._rungs):
            picks = np.flatnonzero(rungs == rung)
            step = max(1, _GROUP_ELEMENTS // width)
            for at in range(0, len(picks), step):
                group = picks[at : at + step]
                ids, values = self.leading(logits, rows[group], width)
                gaps = _gaps(values, peaks[group, None], filters.temperature[group, None])
                kept, decided = _kept(gaps, filters.take(group), totals[group])
                arrivals = _arrivals(gaps, self._noise.bits_of(ids, words[group]))
                arrivals[~kept] = np.inf
                first = arrivals == arrivals.min(axis=1)[:, None]
                chosen[group] = np.where(first, ids, self._vocab_size).min(axis=1)
                rungs[group] = np.where(decided, len(self._rungs), rung + 1)
        return chosen

    def _totals(self, logits: Floats, rows: Ints, peaks: Floats, temperature: Floats) -> Doubles:
        """Sums [n] of exp((logit - peak) / temperature) over the vocabulary."""
        totals = np.empty(len(rows))
        whole = self._vocab_size // self._columns * self._columns
        for block in self._blocks(len(rows)):
            part = _rows(logits, rows[block])
            weights = part - peaks[block, None]
            if (temperature[block] != 1).any():
                weights /= temperature[block, None]
            np.exp(weights, out=weights)
            masses = weights[:, :whole].reshape(len(part), -1, self._columns).sum(axis=1, dtype=np.float64)
            masses[:, : self._vocab_size - whole] += weights[:, whole:]
            totals[block] = np.cumsum(masses, axis=1)[:, -1]
        return totals

    def _candidate_keys(self, logits: Floats, rows: Ints, width: int) -> Iterator[Ints]:
        """Sort keys of a set of tokens that contains the `width` leading finite ones of each row.

        The vocabulary is tiled into columns, two or more for each token wanted. The width-th largest of the
        columns' maxima is a bound that at least `width` tokens reach, and only columns whose maximum reaches
        it are looked into. A key orders by row (11 bits), falling logit (32) and rising token id (20).
        """
        columns = min(max(2 * width, self._columns), self._vocab_size)
        whole = self._vocab_size // columns * columns
        for block in self._blocks(len(rows)):
            part = _rows(logits, rows[block])
            tiles = part[:, :whole].reshape(len(part), -1, columns)
            maxima = tiles.max(axis=1)
            bound = np.full(len(part), _LOWEST)
            if width < columns:
                partitioned = np.partition(maxima, columns - width, axis=1)
                np.maximum(bound, partitioned[:, columns - width], out=bound)
            tile_row, column = _where(maxima >= bound[:, None])
            inside, layer = _where(tiles[tile_row, :, column] >= bound[tile_row, None])
            rest_row, rest = _where(part[:, whole:] >= bound[:, None])
            row = np.concatenate([tile_row[inside], rest_row])
            ids = np.concatenate([layer * columns + column[inside], rest + whole])
            # Adding zero turns -0.0 into 0.0, which equals it and must tie with it.
            bits = (part[row, ids] + np.float32(0)).view(np.int32)
            rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
            yield ((row + block.start) << 52) | ((0x7FFFFFFF - rising) << 20) | ids

    def _blocks(self, n: int) -> Iterator[slice]:
        return (slice(at, min(at + self.block_rows, n)) for at in range(0, n, self.block_rows))


def _gaps(logits: Floats, peaks: Floats, temperature: Floats) -> Floats:
    """log(w) of tokens."""
    gaps: Floats = (logits - peaks) / temperature
    return gaps


def _arrivals(gaps: Floats, bits: Bits) -> Doubles:
    """e / w of tokens: e = -log(1 - v), v = (bits + 0.5) / 2**32. Infinite where single precision lacks w."""
    noise = (bits + 0.5) * -(2.0**-32)
    noise += 1
    np.log(noise, out=noise)
    arrivals: Doubles = np.exp(-gaps) * -noise
    return arrivals


def _kept(gaps: Floats, filters: Filters, totals: Doubles) -> tuple[Bools, Bools]:
    """Which leading tokens [n, width] are kept, and for which rows [n] these are all that are.

    `gaps` [n, width] are (logit - peak) / temperature, falling. `totals` [n] are whole rows' sums of
    exp(gap), used where top-p counts without top-k; where top-k counts, `gaps` cover it.
    """
    width = gaps.shape[1]
    ranked = np.arange(width) < filters.top_k[:, None]
    weights = np.where(ranked, np.exp(gaps), 0)
    sums = np.cumsum(weights, axis=1, dtype=np.float64)
    totals = np.where(totals > 0, totals, sums[:, -1])
    kept = ranked & (gaps >= filters.min_gap[:, None])
    # A token is kept where those before it do not reach p yet.
    kept[:, 1:] &= sums[:, :-1] < (filters.top_p * totals)[:, None]
    return kept, ~kept[:, -1] | (filters.top_k <= width) | np.isneginf(gaps[:, -1])


def _where(mask: Bools) -> tuple[Ints, Ints]:
    """Row and column of every True of a matrix; several times as fast as `np.nonzero` of it."""
    flat = np.flatnonzero(mask)
    return (flat // mask.shape[1], flat % mask.shape[1]) if flat.size else (flat, flat)


def _rows(logits: Floats, rows: Ints) -> Floats:
    """`logits[rows]`, without a copy where the ascending rows lie side by side."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return logits[rows[0] : rows[-1] + 1]
    return logits[rows]
