"""Turns facts into token sequences with loss weights, and those into batches of equal length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache

import torch
from tokenizers import Tokenizer

from ..facts import Fact
from ..phrasing import Message, conversation, plain_text
from .tokenizer import END_OF_TEXT, IM_END, IM_START, token_id

__all__ = ["Batch", "Corpus"]

WIDTHS = (40, 48, 56, 64, 80, 96, 128, 192, 288, 448, 768, 1152, 1600)
"""Sequence lengths in tokens; a document is padded to the smallest that holds it."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""(token ids, loss mask), both int64/bool of shape [rows, width]; the mask is at the predicted token."""

Document = tuple[list[int], list[bool]]


class Corpus:
    """An endless stream of batches over a list of facts, the same for the same seed."""

    def __init__(self, facts: list[Fact], tokenizer: Tokenizer, batch_tokens: int, seed: int) -> None:
        self.facts = facts
        self.related = {(fact.kind, fact.name): fact for fact in facts}
        self.batch_tokens = batch_tokens
        self.epochs = 0
        self._rng = random.Random(seed)
        self._encode = lru_cache(maxsize=None)(lambda text: tokenizer.encode(text).ids)
        self._end = token_id(tokenizer, END_OF_TEXT)
        self._im_start = token_id(tokenizer, IM_START)
        self._im_end = token_id(tokenizer, IM_END)

    def chat(self, messages: list[Message]) -> Document:
        """The ids of a chat as the chat template renders it; only the assistant's words carry loss."""
        ids: list[int] = []
        mask: list[bool] = []
        for role, content in messages:
            head = [self._im_start, *self._encode(f"{role}\n")]
            body = [*self._encode(content), self._im_end]
            ids += head + body + self._encode("\n")
            mask += [False] * len(head) + [role == "assistant"] * len(body) + [False]
        return ids, mask

    def _documents(self) -> Iterator[Document]:
        """One pass over all facts: most in chats of one to three, a few in long chats or after long notes.

        Without the long ones the model would only work at the short distances that it has seen.
        """
        rng = self._rng
        # A fact with many questions of its own comes more often, so that each of them is seen.
        order = [fact for fact in self.facts for _ in range(max(1, len(fact.questions) // 2))]
        rng.shuffle(order)
        while order:
            roll = rng.random()
            turns = 1 if roll < 0.80 else 2 if roll < 0.94 else 3 if roll < 0.99 else rng.randint(4, 18)
            asked = [order.pop() for _ in range(min(turns, len(order)))]
            notes = rng.sample(self.facts, rng.randint(2, 24)) if rng.random() < 0.01 else []
            yield self.chat(conversation(asked, self.related, notes, rng))
            if rng.random() < 0.05:
                ids = [*self._encode(plain_text(rng.choice(self.facts))), self._end]
                # The first tokens of running text cannot be predicted from nothing.
                yield ids, [i >= 3 for i in range(len(ids))]

    def batches(self) -> Iterator[Batch]:
        """Batches of about `batch_tokens` tokens; every row is one document, padded at its end."""
        waiting: dict[int, list[Document]] = {width: [] for width in WIDTHS}
        while True:
            ready: list[Batch] = []
            for document in self._documents():
                width = next((w for w in WIDTHS if w >= len(document[0])), None)
                if width is None:
                    continue
                waiting[width].append(document)
                if len(waiting[width]) == max(1, self.batch_tokens // width):
                    ready.append(self._stack(waiting[width], width))
                    waiting[width] = []
            self._rng.shuffle(ready)
            yield from ready
            self.epochs += 1

    def _stack(self, documents: list[Document], width: int) -> Batch:
        ids = torch.full((len(documents), width), self._end)
        mask = torch.zeros((len(documents), width), dtype=torch.bool)
        for row, (tokens, flags) in enumerate(documents):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = torch.tensor(flags)
        return ids, mask
