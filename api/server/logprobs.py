"""Log-probabilities in OpenAI's forms."""

from collections.abc import Sequence

from ...backends.worker import Tokenizer
from ...engine import Output
from ...scheduler import TokenLogprobs
from .schemas.chat import ChatLogprobs, TokenLogprob, TopLogprob
from .schemas.common import PromptLogprob, PromptLogprobs
from .schemas.completions import CompletionLogprobs

_LEAST = -9999.0
"""Stands for a probability of zero, which JSON cannot carry as a logarithm; OpenAI's documented value."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token alone; part of a character is U+FFFD."""
    return tokenizer.decode((token,), skip_special_tokens=False)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def chat_logprobs(tokenizer: Tokenizer, output: Output) -> ChatLogprobs:
    """Of the tokens of one read, for a chat completion."""
    content: list[TokenLogprob] = []
    for token, scores in zip(output.token_ids, output.logprobs, strict=True):
        text = token_text(tokenizer, token)
        alternatives = [_alternative(tokenizer, other, value) for other, value in scores.top]
        content.append(
            TokenLogprob(
                token=text,
                logprob=_finite(scores.logprob),
                bytes=list(text.encode()),
                top_logprobs=alternatives,
            )
        )
    return ChatLogprobs(content=content)


def _alternative(tokenizer: Tokenizer, token: int, logprob: float) -> TopLogprob:
    text = token_text(tokenizer, token)
    return TopLogprob(token=text, logprob=_finite(logprob), bytes=list(text.encode()))


class CompletionTable:
    """Builds one choice's `logprobs` object, piece by piece; offsets go on from piece to piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def prompt(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], alternatives: int
    ) -> CompletionLogprobs:
        """The rows of an echoed prompt."""
        logprobs = [None if entry is None else entry.logprob for entry in entries]
        tops = [None if entry is None else entry.top[:alternatives] for entry in entries]
        return self._rows(token_ids, logprobs, tops)

    def output(self, output: Output) -> CompletionLogprobs:
        """The rows of what was generated."""
        logprobs = [entry.logprob for entry in output.logprobs]
        return self._rows(output.token_ids, logprobs, [entry.top for entry in output.logprobs])

    def _rows(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float | None],
        tops: Sequence[Sequence[tuple[int, float]] | None],
    ) -> CompletionLogprobs:
        texts = [token_text(self._tokenizer, token) for token in token_ids]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        rows: list[dict[str, float] | None] = []
        for text, logprob, top in zip(texts, logprobs, tops, strict=True):
            if top is None or logprob is None:
                rows.append(None)
                continue
            row: dict[str, float] = {}
            for (
                other,
                value,
            ) in top:  # different ids may have the same text: the most likely one stands for it
                row.setdefault(token_text(self._tokenizer, other), _finite(value))
            row.setdefault(text, _finite(logprob))
            rows.append(row)
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[None if value is None else _finite(value) for value in logprobs],
            top_logprobs=rows,
            text_offset=offsets,
        )


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The rows of both."""
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def prompt_logprobs_in_chunk(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]
) -> list[dict[str, dict[str, object]] | None]:
    """`prompt_logprobs`, for an event."""
    return [
        None if row is None else {token: entry.model_dump() for token, entry in row.items()}
        for row in prompt_logprobs(tokenizer, token_ids, entries)
    ]


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]
) -> PromptLogprobs:
    """Of a prompt, one entry per token, as vLLM has them."""
    rows: PromptLogprobs = []
    for token, entry in zip(token_ids, entries, strict=True):
        if entry is None:
            rows.append(None)
            continue
        ranks = {other: rank for rank, (other, _) in enumerate(entry.top, start=1)}
        values = {token: entry.logprob, **dict(entry.top)}
        rows.append(
            {
                str(other): PromptLogprob(
                    logprob=_finite(value), rank=ranks.get(other), decoded_token=token_text(tokenizer, other)
                )
                for other, value in values.items()
            }
        )
    return rows
