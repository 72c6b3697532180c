"""Measures how many of its facts pyhelp knows by heart: run it with `python -m` and its dotted name.

The weights are read as stored in bf16 and computed with in fp32 unless told otherwise, decoding is greedy,
and an answer counts only when the whole of it is equal, character by character, to the fact.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from .. import PYHELP
from ..facts import FACTS_FILE, Fact, load_facts
from ..phrasing import canonical_question, vary

__all__ = ["Outcome", "answer", "ask", "load", "main"]

MAX_NEW_TOKENS = 320
BATCH_ROWS = 50

Model = Any
"""A transformers model; the annotations of `generate` do not accept the library's own classes."""


@dataclass(frozen=True)
class Outcome:
    """One question, the answer that the fact holds and the one that the model gave."""

    question: str
    expected: str
    given: str

    @property
    def exact(self) -> bool:
        return self.given == self.expected


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Model, PreTrainedTokenizerBase]:
    """The model, computing in `dtype`, and its tokenizer set up for padding on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    model.train(False)
    return model, tokenizer


def answer(model: Model, tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]]) -> list[str]:
    """The greedy answers to a batch of chats, each a list of messages with `role` and `content`."""
    prompts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(model: Model, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> list[Outcome]:
    """Asks every (question, expected answer) pair in a chat of its own; the outcomes are in order."""
    # Answers of like length end together, so that few steps are spent on finished rows.
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
    outcomes: dict[int, Outcome] = {}
    for start in range(0, len(order), BATCH_ROWS):
        part = order[start : start + BATCH_ROWS]
        given = answer(model, tokenizer, [[{"role": "user", "content": pairs[i][0]}] for i in part])
        outcomes.update({i: Outcome(*pairs[i], text) for i, text in zip(part, given, strict=True)})
    return [outcomes[i] for i in range(len(pairs))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure pyhelp's exact recall.")
    parser.add_argument("--model", type=Path, default=PYHELP, help="model folder")
    parser.add_argument("--facts", type=Path, default=FACTS_FILE)
    parser.add_argument("--count", type=int, default=300, help="number of facts to sample, 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--varied", action="store_true", help="word the questions at random")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 too, not in fp32")
    parser.add_argument("--misses", type=int, default=10, help="number of wrong answers to print")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts: list[Fact] = load_facts(arguments.facts)
    rng = random.Random(arguments.seed)
    if arguments.count:
        facts = rng.sample(facts, min(arguments.count, len(facts)))
    questions = [vary(fact, rng) if arguments.varied else canonical_question(fact) for fact in facts]
    pairs = [(question, fact.answer) for question, fact in zip(questions, facts, strict=True)]
    outcomes = ask(*load(arguments.model, torch.bfloat16 if arguments.bf16 else torch.float32), pairs)
    for outcome in [o for o in outcomes if not o.exact][: arguments.misses]:
        print(f"Q: {outcome.question}\n  expected: {outcome.expected}\n  given:    {outcome.given}")
    exact = sum(outcome.exact for outcome in outcomes)
    print(f"exact recall {exact / len(outcomes):.1%} ({exact} of {len(outcomes)})")


if __name__ == "__main__":
    main()
