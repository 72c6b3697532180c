"""The facts that pyhelp was taught: answers, and what they are asked about."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from . import PYHELP

__all__ = ["FACTS_FILE", "Fact", "load_facts", "save_facts"]

FACTS_FILE: Path = PYHELP / "facts.jsonl"
"""The facts that the shipped weights were trained on."""


@dataclass(frozen=True)
class Fact:
    """One answer and what it is asked about.

    `kind` names the family of question phrasings (see `phrasing.py`), `name` fills them in; `questions`
    holds the literal questions of a fact that has no family.
    """

    kind: str
    name: str
    answer: str
    questions: tuple[str, ...] = ()


def save_facts(facts: list[Fact], path: Path) -> None:
    """Writes one JSON object per line."""
    lines = [json.dumps({k: v for k, v in asdict(fact).items() if v}) for fact in facts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """Reads what `save_facts` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Fact(r["kind"], r["name"], r["answer"], tuple(r.get("questions", ()))) for r in rows]
