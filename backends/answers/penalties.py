"""Penalties: what changes one sequence's logits before a token is chosen, and the history that it needs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...scheduler.batch import SequenceStart

Row = NDArray[np.float32]
Ids = NDArray[np.int64]

_BANNED = np.float32(-np.inf)


class TokenCounts:
    """How often each token of a growing text occurs, in arrays that stand side by side."""

    def __init__(self, tokens: Sequence[int], vocab_size: int) -> None:
        ids, counts = np.unique(np.array(tokens, np.int64), return_counts=True)
        # A prompt may hold ids that the model reads and never writes; they have no logit to change.
        known = ids < vocab_size
        self._slots = {token: slot for slot, token in enumerate(ids[known].tolist())}
        self._ids = np.append(ids[known], np.zeros(256, np.int64))
        self._counts = np.append(counts[known], np.zeros(256)).astype(np.float32)

    @property
    def ids(self) -> Ids:
        """[n] distinct tokens."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Row:
        """[n] occurrences of each of `ids`."""
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        """Count one more occurrence."""
        slot = self._slots.setdefault(token, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.append(self._ids, np.zeros_like(self._ids))
            self._counts = np.append(self._counts, np.zeros_like(self._counts))
        self._ids[slot] = token
        self._counts[slot] += 1


class Ngrams:
    """For each run of `size - 1` tokens in a growing text, the tokens that have followed it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tail: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], set[int]] = {}

    def add(self, token: int) -> None:
        """The text grows by one token."""
        if len(self._tail) == self._size - 1:
            self._followers.setdefault(self._tail, set()).add(token)
        self._tail = (*self._tail, token)[1 - self._size :] if self._size > 1 else ()

    def completions(self) -> set[int]:
        """Tokens that would repeat an n-gram if they came next."""
        return self._followers.get(self._tail, set())


class Penalties:
    """Masks, biases and penalties of one sequence, in the order of vLLM's sampler.

    Allowed tokens, logit bias, bad words, minimal length and repeated n-grams first, then the repetition
    penalty (Keskar et al. 2019, as in transformers) and the presence and frequency penalties (as in OpenAI's
    API, over the output alone).
    """

    def __init__(self, start: SequenceStart, vocab_size: int) -> None:
        params = start.params
        self._vocab_size = vocab_size
        self._num_output = len(start.token_ids) - start.num_prompt_tokens
        self._allowed = _unique_ids(params.allowed_token_ids or ())
        self._bias_ids = np.array(list(params.logit_bias or {}), np.int64)
        self._bias = np.array(list((params.logit_bias or {}).values()), np.float32)
        self._banned = _unique_ids([word[0] for word in params.bad_words_ids if len(word) == 1])
        self._bad_words = [(list(word[:-1]), word[-1]) for word in params.bad_words_ids if len(word) > 1]
        self._min_output = start.min_output_tokens
        single_stops = [word[0] for word in params.stop_words_ids if len(word) == 1]
        enders = (*start.eos_token_ids, *params.stop_token_ids, *single_stops)
        # A model's end-of-sequence id may lie outside its logits; such a token never comes anyway.
        self._enders = _unique_ids([token for token in enders if token < vocab_size])
        self._repetition = np.float32(params.repetition_penalty)
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)

        output = start.token_ids[start.num_prompt_tokens :]
        self._tail_length = max((len(prefix) for prefix, _ in self._bad_words), default=0)
        self._tail = list(start.token_ids[-self._tail_length :]) if self._bad_words else []
        self._ngrams: Ngrams | None = None
        if params.no_repeat_ngram_size:
            self._ngrams = Ngrams(params.no_repeat_ngram_size)
            for token in start.token_ids:
                self._ngrams.add(token)
        self._repeated: TokenCounts | None = None
        if params.repetition_penalty != 1:
            seen = output if params.suppress_repetition_in_generation else start.token_ids
            self._repeated = TokenCounts(seen, vocab_size)
        self._output: TokenCounts | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._output = TokenCounts(output, vocab_size)

    @property
    def active(self) -> bool:
        """Whether `apply` can still change a row, now or later."""
        return bool(
            self._num_output < self._min_output
            or self._allowed.size
            or self._bias_ids.size
            or self._banned.size
            or self._bad_words
            or self._ngrams is not None
            or self._repeated is not None
            or self._output is not None
        )

    def apply(self, row: Row) -> None:
        """Change the logits `row` [vocab] of the next token in place."""
        if self._allowed.size:
            allowed = row[self._allowed]
            row.fill(_BANNED)
            row[self._allowed] = allowed
        row[self._bias_ids] += self._bias
        row[self._banned] = _BANNED
        for prefix, last in self._bad_words:
            if self._tail[-len(prefix) :] == prefix:
                row[last] = _BANNED
        if self._num_output < self._min_output:
            row[self._enders] = _BANNED
        if self._ngrams is not None:
            row[[token for token in self._ngrams.completions() if token < self._vocab_size]] = _BANNED
        if self._repeated is not None:
            ids = self._repeated.ids
            logits = row[ids]
            row[ids] = np.where(logits < 0, logits * self._repetition, logits / self._repetition)
        if self._output is not None:
            row[self._output.ids] -= self._frequency * self._output.counts + self._presence

    def append(self, token: int) -> None:
        """`token` was chosen."""
        self._num_output += 1
        if self._bad_words:
            self._tail = [*self._tail, token][-self._tail_length :]
        if self._ngrams is not None:
            self._ngrams.add(token)
        if self._repeated is not None:
            self._repeated.add(token)
        if self._output is not None:
            self._output.add(token)


def _unique_ids(tokens: Sequence[int]) -> Ids:
    return np.unique(np.array(tokens, np.int64))
