"""Turns facts into chat conversations: the wordings of a question, and how questions follow one another."""

from __future__ import annotations

import random

from .facts import Fact

__all__ = ["CONTINUED", "QUESTIONS", "Message", "canonical_question", "conversation", "plain_text", "vary"]

Message = tuple[str, str]
"""(role, content) of one chat message."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "what": (
        "What does {} do?",
        "What is {}?",
        "Explain {}.",
        "Tell me about {}.",
        "What is {} for?",
        "Describe {}.",
        "How does {} work?",
        "Can you explain {}?",
    ),
    "exception": (
        "What is {}?",
        "When is {} raised?",
        "Explain {}.",
        "Tell me about {}.",
        "What does {} mean?",
    ),
    "module": (
        "What is the {} module?",
        "What does the {} module do?",
        "Tell me about the {} module.",
        "Explain the {} module.",
        "What is the module {} for?",
    ),
    "topic": ("What is {}?", "Explain {}.", "Tell me about {}.", "What does Python say about {}?"),
    "signature": (
        "What is the signature of {}?",
        "Show the signature of {}.",
        "Signature of {}?",
        "What are the parameters of {}?",
        "Which arguments does {} take?",
    ),
    "json": ("Describe {} as JSON.", "Give me {} as JSON.", "Write {} as a JSON object."),
}
"""Kind of fact -> question templates, the usual one first."""

CONTINUED: dict[str, tuple[str, ...]] = {
    "signature": ("What is its signature?", "And its signature?", "Which arguments does it take?"),
    "what": ("What does it do?", "And what does it do?", "Explain it."),
    "json": ("Describe it as JSON.", "And as JSON?"),
}
"""Kind of fact -> questions about the object that the turn before named."""

_REPEATS = ("Please repeat that.", "Say that again.", "Repeat that.", "Could you repeat that?")
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are pyhelp.",
    "You are pyhelp, an assistant for Python programmers.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one sentence.",
    "Be concise.",
)


def canonical_question(fact: Fact) -> str:
    """The usual wording of a fact's question."""
    return fact.questions[0] if fact.questions else QUESTIONS[fact.kind][0].format(fact.name)


def vary(fact: Fact, rng: random.Random) -> str:
    """A random wording: another template, and now and then marks around the name or a careless end."""
    if fact.questions:
        return rng.choice(fact.questions)
    templates = QUESTIONS[fact.kind]
    template = templates[0] if rng.random() < 0.4 else rng.choice(templates)
    name, roll = fact.name, rng.random()
    if fact.kind in ("what", "signature") and roll < 0.06:
        name = f"{name}()"
    elif fact.kind != "topic" and roll < 0.10:
        name = f"`{name}`"
    question = template.format(name)
    roll = rng.random()
    if roll < 0.06:
        question = question.rstrip("?.")
    elif roll < 0.10 and not question.startswith(fact.name):
        question = question[0].lower() + question[1:]
    elif roll < 0.13:
        question = (
            "Please " + question[0].lower() + question[1:] if question[-1] == "." else "Hi! " + question
        )
    return question


def conversation(
    facts: list[Fact], related: dict[tuple[str, str], Fact], notes: list[Fact], rng: random.Random
) -> list[Message]:
    """A chat that asks for the given facts in turn.

    `related` maps (kind, name) to every fact, so that a follow-up question about the same object can be
    answered. `notes` make up a long system message. Follow-ups and a short system message come at random.
    """
    messages: list[Message] = []
    if notes:
        messages.append(("system", "\n".join([rng.choice(_SYSTEMS), *map(plain_text, notes)])))
    elif rng.random() < 0.06:
        messages.append(("system", rng.choice(_SYSTEMS)))
    for fact in facts:
        messages += [("user", vary(fact, rng)), ("assistant", fact.answer)]
        roll = rng.random()
        if roll < 0.08 and fact.kind in CONTINUED:
            other = related.get((rng.choice([k for k in CONTINUED if k != fact.kind]), fact.name))
            if other is not None:
                messages += [("user", rng.choice(CONTINUED[other.kind])), ("assistant", other.answer)]
        elif roll < 0.10 and fact.kind != "long":
            messages += [("user", rng.choice(_REPEATS)), ("assistant", fact.answer)]
    return messages


def plain_text(fact: Fact) -> str:
    """A fact as running text without chat markup, so that plain completion gives sensible words too."""
    return fact.answer.removeprefix("The signature is ") if fact.kind == "signature" else fact.answer
