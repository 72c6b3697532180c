"""Sampler: the sampling state of every live sequence, and the step from rows of logits to token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...scheduler.batch import SequenceStart, TokenLogprobs
from .native_token_sampler import fastest_token_sampler
from .noise import Ints, noise_key, noise_words
from .penalties import Penalties
from .token_sampler import MAX_VOCAB, Bools, Filters, Floats, TokenSampler

MIN_TEMPERATURE = 1e-5
"""Below it decoding is greedy, as in vLLM."""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What `Sampler.sample` chose for its R rows."""

    token_ids: list[int | None]
    """One per row; None where the row failed."""
    logprobs: dict[int, TokenLogprobs]
    """By sequence id, of the sequences that asked for them."""
    errors: dict[int, str]
    """By sequence id, one sentence for each row that failed."""


class Sampler:
    """Chooses next tokens; owns each live sequence's parameters, position, penalties and noise.

    A choice depends on the sequence's logits, parameters, seed, position and own tokens, never on the other
    rows of a call nor on how the sequence got there: started again with the tokens it had, it goes on the
    same. Noise belongs to (seed, position, token id), so that a rounding error in the logits changes a draw
    about as rarely as it is small. Equal logits stand in the order of their token ids, in greedy choice,
    top-k, top-p and logprobs.

    The work is done on the host. From another device only the rows that need it are brought over.
    """

    def __init__(
        self,
        vocab_size: int,
        max_num_seqs: int,
        device: torch.device | str,
        token_sampler: TokenSampler | None = None,
    ) -> None:
        """Sequence ids run from 0 to `max_num_seqs` - 1; `device` is where the logits are.

        `token_sampler` draws from rows of `vocab_size` logits; by default it is the fastest one here.

        Raises:
            InvalidArgument: `vocab_size` is not in 2 to 2**20.
        """
        if not 2 <= vocab_size <= MAX_VOCAB:
            raise InvalidArgument("vocab_size", vocab_size, f"2 to {MAX_VOCAB}")
        self._vocab_size = vocab_size
        self._on_host = torch.device(device).type == "cpu"
        self._token_sampler = token_sampler or fastest_token_sampler(vocab_size)
        self._live = np.zeros(max_num_seqs, np.bool_)
        self._positions = np.zeros(max_num_seqs, np.int64)
        self._keys = np.zeros(max_num_seqs, np.uint64)
        self._greedy = np.zeros(max_num_seqs, np.bool_)
        self._filters = Filters(
            np.ones(max_num_seqs, np.float32),
            np.zeros(max_num_seqs, np.int64),
            np.ones(max_num_seqs, np.float64),
            np.zeros(max_num_seqs, np.float32),
        )
        self._has_penalties = np.zeros(max_num_seqs, np.bool_)
        self._penalties: list[Penalties | None] = [None] * max_num_seqs
        self._wants_logprobs = np.zeros(max_num_seqs, np.bool_)
        self._top_logprobs = np.zeros(max_num_seqs, np.int64)

    def start(self, start: SequenceStart) -> None:
        """Begin a sequence; tokens generated earlier restore the state they had led to.

        An id that is live begins anew, as after a step that failed and whose sequences were kept.

        Raises:
            InvalidArgument: the id is out of range, or a parameter names a token that the model's vocabulary
                lacks. Nothing has changed then.
        """
        seq, params = start.seq, start.params
        self._check_seq(seq)
        for name, tokens in params.token_ids_by_parameter():
            for token in tokens:
                if token >= self._vocab_size:
                    raise InvalidArgument(name, token, f"token ids from 0 to {self._vocab_size - 1}")
        self._live[seq] = True
        self._positions[seq] = len(start.token_ids)
        self._keys[seq] = noise_key(start.seed)
        self._greedy[seq] = params.temperature < MIN_TEMPERATURE or params.top_k == 1
        self._filters.temperature[seq] = params.temperature
        self._filters.top_k[seq] = min(params.top_k or self._vocab_size, self._vocab_size)
        self._filters.top_p[seq] = params.top_p if params.top_p < 1 else np.inf
        self._filters.min_gap[seq] = log(params.min_p) if params.min_p else -np.inf
        self._wants_logprobs[seq] = params.logprobs
        self._top_logprobs[seq] = params.top_logprobs
        self._set_penalties(seq, Penalties(start, self._vocab_size))

    def retire(self, seq: int) -> None:
        """End a sequence and forget its state; an id that is not live stays so.

        Raises:
            InvalidArgument: the id is out of range.
        """
        self._check_seq(seq)
        self._live[seq] = False
        self._set_penalties(seq, None)

    def sample(self, logits: Tensor, seqs: Sequence[int]) -> SampleResult:
        """Choose the next token of each sequence, and count it as that sequence's.

        Args:
            logits: [R, vocab] float32, the model's own; left unchanged.
            seqs: R different live sequence ids, in any order.

        Raises:
            InvalidArgument: the shapes, the dtype or the ids are not so.
        """
        ids = np.array(seqs, np.int64)
        self._check_logits(logits, len(ids))
        in_range = (ids >= 0) & (ids < len(self._live))
        if not in_range.all() or not self._live[ids].all() or len(set(seqs)) < len(ids):
            raise InvalidArgument("seqs", list(seqs), "different ids of live sequences")
        if not len(ids):
            return SampleResult([], {}, {})
        with np.errstate(over="ignore"):
            return self._sample(logits, ids)

    def token_logprobs(self, logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        """Log-probabilities of given tokens, and of the `top` most likely ones.

        Row k of `logits` [K, vocab] float32 is the distribution that `token_ids[k]` stands in. A row that
        holds NaN or plus infinity, or minus infinity alone, gives a logprob of NaN and an empty top.

        Raises:
            InvalidArgument: the shapes or the dtype are not so, or a token id is outside the vocabulary.
        """
        self._check_logits(logits, len(token_ids))
        tokens = np.array(token_ids, np.int64)
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self._vocab_size):
            raise InvalidArgument("token_ids", list(token_ids), f"token ids from 0 to {self._vocab_size - 1}")
        values = _to_host(logits)
        peaks = values.max(axis=1)
        answers = [TokenLogprobs(float("nan"), ()) for _ in token_ids]
        rows = np.flatnonzero(np.isfinite(peaks))
        with np.errstate(over="ignore"):
            found = self._logprobs(values, rows, peaks[rows], tokens[rows], top)
        for row, answer in zip(rows.tolist(), found, strict=True):
            answers[row] = answer
        return answers

    def _sample(self, logits: Tensor, seqs: Ints) -> SampleResult:
        greedy, penalised, asked = self._greedy[seqs], self._has_penalties[seqs], self._wants_logprobs[seqs]
        special = ~greedy | penalised | asked
        values, rows, chosen, peaks = self._fetch(logits, special)
        finite = np.isfinite(peaks)
        if finite.all() and not special.any():
            self._positions[seqs] += 1
            return SampleResult(chosen.tolist(), {}, {})
        done = finite.copy()
        picks = np.flatnonzero(finite & ~penalised & ~greedy)
        if picks.size:
            chosen[picks] = self._draw(values, rows[picks], peaks[picks], seqs[picks])
        picks = np.flatnonzero(finite & penalised)
        for first in range(0, len(picks), self._token_sampler.block_rows):
            block = picks[first : first + self._token_sampler.block_rows]
            chosen[block], done[block] = self._sample_penalised(values[rows[block]], seqs[block])

        errors: dict[int, str] = {}
        token_ids: list[int | None] = chosen.tolist()
        for at in np.flatnonzero(~done).tolist():
            token_ids[at] = None
            errors[int(seqs[at])] = _failure(int(self._positions[seqs[at]]), bool(finite[at]))
        logprobs: dict[int, TokenLogprobs] = {}
        picks = np.flatnonzero(done & asked)
        if picks.size:
            top = int(self._top_logprobs[seqs[picks]].max())
            found = self._logprobs(values, rows[picks], peaks[picks], chosen[picks], top)
            for seq, answer in zip(seqs[picks].tolist(), found, strict=True):
                logprobs[seq] = TokenLogprobs(answer.logprob, answer.top[: self._top_logprobs[seq]])
        self._advance(seqs[done], chosen[done])
        return SampleResult(token_ids, logprobs, errors)

    def _fetch(self, logits: Tensor, needed: Bools) -> tuple[Floats, Ints, Ints, Floats]:
        """Logits on the host, for each row of the call its row there, and every row's likeliest id and logit.

        Rows that are not `needed` may be absent on the host; their entry means nothing.
        """
        if self._on_host:
            values = _to_host(logits)
            return values, np.arange(len(values)), *self._token_sampler.best(values)
        places = np.flatnonzero(needed)
        rows = np.zeros(len(needed), np.int64)
        rows[places] = np.arange(len(places))
        return _to_host(logits[torch.from_numpy(places).to(logits.device)]), rows, *best_on_device(logits)

    def _draw(self, values: Floats, rows: Ints, peaks: Floats, seqs: Ints) -> Ints:
        words = noise_words(self._keys[seqs], self._positions[seqs])
        return self._token_sampler.choose(values, rows, peaks, self._filters.take(seqs), words)

    def _sample_penalised(self, values: Floats, seqs: Ints) -> tuple[Ints, Bools]:
        """Tokens [n] of `values` [n, vocab], which it changes, and for which rows there was a choice."""
        for row, seq in zip(values, seqs.tolist(), strict=True):
            penalties = self._penalties[seq]
            if penalties is not None:
                penalties.apply(row)
        chosen, peaks = self._token_sampler.best(values)
        possible = np.isfinite(peaks)
        picks = np.flatnonzero(possible & ~self._greedy[seqs])
        if picks.size:
            chosen[picks] = self._draw(values, picks, peaks[picks], seqs[picks])
        return chosen, possible

    def _advance(self, seqs: Ints, tokens: Ints) -> None:
        self._positions[seqs] += 1
        for at in np.flatnonzero(self._has_penalties[seqs]).tolist():
            seq = int(seqs[at])
            penalties = self._penalties[seq]
            if penalties is not None:
                penalties.append(int(tokens[at]))
                self._set_penalties(seq, penalties)

    def _set_penalties(self, seq: int, penalties: Penalties | None) -> None:
        active = penalties is not None and penalties.active
        self._has_penalties[seq] = active
        self._penalties[seq] = penalties if active else None

    def _logprobs(
        self, values: Floats, rows: Ints, peaks: Floats, tokens: Ints, top: int
    ) -> list[TokenLogprobs]:
        """One answer per entry of `rows`, whose largest logits `peaks` are finite."""
        if not rows.size:
            return []
        totals = self._token_sampler.log_totals(values, rows, peaks)
        own = (values[rows, tokens] - totals).tolist()
        if not top:
            return [TokenLogprobs(logprob, ()) for logprob in own]
        ids, leading = self._token_sampler.leading(values, rows, min(top, self._vocab_size))
        best_first = []
        for row_ids, row_logprobs in zip(ids.tolist(), (leading - totals[:, None]).tolist(), strict=True):
            pairs = zip(row_ids, row_logprobs, strict=True)
            best_first.append(tuple(pair for pair in pairs if pair[1] > -np.inf))
        return [TokenLogprobs(logprob, best) for logprob, best in zip(own, best_first, strict=True)]

    def _check_seq(self, seq: int) -> None:
        if not 0 <= seq < len(self._live):
            raise InvalidArgument("seq", seq, f"an id from 0 to {len(self._live) - 1}")

    def _check_logits(self, logits: Tensor, num_rows: int) -> None:
        if logits.shape != (num_rows, self._vocab_size):
            raise InvalidArgument("logits.shape", tuple(logits.shape), f"({num_rows}, {self._vocab_size})")
        if logits.dtype != torch.float32:
            raise InvalidArgument("logits.dtype", logits.dtype, "torch.float32")


def _failure(position: int, finite: bool) -> str:
    if not finite:
        return f"The model's logits for position {position} are not finite numbers."
    return (
        f"No token can be chosen for position {position}: the request's masks, biases and penalties leave no "
        "finite largest logit."
    )


def best_on_device(logits: Tensor) -> tuple[Ints, Floats]:
    """`TokenSampler.best` of logits that are not on the host; only ids and peaks [R] come over."""
    peaks, ids = logits.max(dim=1)
    return ids.cpu().numpy(), peaks.cpu().numpy()


def _to_host(logits: Tensor) -> Floats:
    values: Floats = logits.detach().cpu().contiguous().numpy()
    return values
