"""Collects the facts that pyhelp knows from the running Python's own docstrings and help topics.

A fact is one answer with the family of questions it belongs to. The shipped `facts.jsonl` is the list that
the shipped weights were trained on; `python -m millstream.backends.bundled.making.data --out FILE` makes a
new one. The result depends on the Python version and platform only.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import inspect
import json
import pydoc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..facts import FACTS_FILE, Fact, save_facts
from .handwritten import BETTER, KEYWORDS, LONG_ANSWERS, SMALLTALK
from .sources import CLASSES, JSON_MODULES, MODULES, SIGNATURE_MODULES, TOPICS

__all__ = ["build_facts"]

MAX_ANSWER_CHARS = 210
MAX_TOPIC_CHARS = 260
MAX_SIGNATURE_CHARS = 110
NO_DESCRIPTION = ("Copyright", "http", "$", "Module ", "Function ", "def ")
"""How a paragraph of a module's docstring begins that does not describe the module."""


def _first_sentences(text: str, limit: int = MAX_ANSWER_CHARS) -> str | None:
    """Whole sentences from the start of a paragraph, as many as fit in `limit` characters (at most two)."""
    text = re.sub(r":[a-z:]+:`([^`]*)`", r"\1", text)
    text = re.sub(r"``?([^`']*)(``?|'')", r"\1", text)
    text = re.sub(r"\*([A-Za-z]\w*(?: \w+)?)\*", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip().replace(" -- ", " - ").replace("--", "-")
    if not text or not text.isascii():
        return None
    parts = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!eg\.)(?<!vs\.) +(?=[A-Z\"'(])", text)
    kept = ""
    for part in parts[:2]:
        longer = f"{kept} {part}".strip()
        if len(longer) > limit:
            break
        kept = longer
    kept = kept.rstrip(" ,;")
    if kept.endswith(":"):
        head, dot, _ = kept.rpartition(". ")
        kept = head + dot.strip() if dot else ""
    if len(kept) < 14 or " " not in kept or ">>>" in kept or "|" in kept or kept.count("=") > 3:
        return None
    kept = kept[0].upper() + kept[1:] if kept[1:2].islower() and "_" not in kept.split()[0] else kept
    return kept if kept[-1] in ".!?" else kept + "."


def _doc_paragraphs(obj: Any, last: str) -> list[str]:
    """The paragraphs of an object's docstring without leading call signatures such as `name(args) -> x`."""
    # A class without a docstring of its own would speak of its base class.
    own = not inspect.isclass(obj) or vars(obj).get("__doc__")
    doc = (inspect.getdoc(obj) or "") if own else ""
    lines = doc.removeprefix(f"{last}: ").splitlines()
    returns = r"(?:->\s*[\w\s.,()\[\]{}]+?)?"
    call = re.compile(rf"^(\w+\.)*{re.escape(last)}\(.*?\)\s*{returns}\s*(?:$|[-:]+ +|  +(?=\w))")
    while lines and (not lines[0].strip() or call.match(lines[0])):
        rest = call.sub("", lines[0]).strip()
        if rest:
            lines[0] = rest
            break
        lines.pop(0)
    return [p for p in re.split(r"\n\s*\n", "\n".join(lines)) if p.strip()]


def _describe(obj: Any, last: str) -> str | None:
    """One or two sentences that say what an object does, or None where its docstring has no usable ones."""
    for paragraph in _doc_paragraphs(obj, last)[:2]:
        if re.match(r"^\s*(\w+\()|^\s*[-*=]", paragraph) or "->" in paragraph:
            continue
        sentence = _first_sentences(paragraph)
        if sentence is not None:
            return sentence
    return None


def _signature(obj: Any, method: bool) -> str | None:
    """The parameter list in parentheses, without annotations and without a method's own `self`."""
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    if method and parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    text = str(inspect.Signature(parameters))
    # Defaults shown as objects differ from run to run, and an unnamed catch-all tells nothing.
    useless = "<" in text or str(sys.maxsize) in text or text == "(*args, **kwargs)"
    return None if useless or len(text) > MAX_SIGNATURE_CHARS else text


def _kind_of(obj: Any, method: bool) -> str:
    if inspect.isclass(obj):
        return "exception" if issubclass(obj, BaseException) else "class"
    if method:
        return "method" if callable(obj) else "attribute"
    return "function"


def _members(module: str) -> Iterator[tuple[str, Any]]:
    """Public functions and classes of a module in name order, under the name a user would type."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or dir(loaded)
    for name in sorted(names):
        obj = getattr(loaded, name, None)
        imported = name.endswith("_") and hasattr(builtins, name[:-1])
        if name.startswith("_") or imported or not callable(obj) or inspect.ismodule(obj):
            continue
        home = getattr(obj, "__module__", module) or module
        # A name that a module merely imported belongs to the module that made it.
        homes = (module.split(".")[0], "builtins")
        if not hasattr(loaded, "__all__") and home.split(".")[0].lstrip("_") not in homes:
            continue
        if home == "typing" and module != "typing":
            continue
        yield name if module == "builtins" else f"{module}.{name}", obj


def _class_members(path: str) -> Iterator[tuple[str, Any]]:
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module or "builtins"), name)
    for member in sorted(vars(cls) if module else dir(cls)):
        obj = getattr(cls, member)
        # The documentation of a plain constant is that of its type.
        if not member.startswith("_") and (callable(obj) or inspect.isdatadescriptor(obj)):
            yield f"{path}.{member}", obj


def _object_facts(name: str, obj: Any, method: bool, with_signature: bool) -> Iterator[Fact]:
    last = name.rpartition(".")[2]
    sentence = BETTER.get(name) or _describe(obj, last)
    if sentence is None or sentence == "An enumeration.":
        return
    kind = _kind_of(obj, method)
    yield Fact("exception" if kind == "exception" else "what", name, f"{name}: {sentence}")
    signature = _signature(obj, method) if with_signature and kind in ("function", "method") else None
    if signature is not None:
        yield Fact("signature", name, f"The signature is {name}{signature}.")
        if not method and name.rpartition(".")[0] in JSON_MODULES | {""}:
            yield Fact("json", name, json.dumps({"name": last, "path": name, "kind": kind}))


def _module_facts(module: str) -> Iterator[Fact]:
    loaded = importlib.import_module(module)
    for paragraph in _doc_paragraphs(loaded, module)[:3]:
        sentence = _first_sentences(re.sub(r"^\s*[\w.]+ --? ", "", paragraph))
        if sentence is not None and not paragraph.startswith(NO_DESCRIPTION):
            yield Fact("module", module, f"{module}: {sentence}")
            return


def _topic_facts() -> Iterator[Fact]:
    """Language topics, as the interactive help knows them."""
    from pydoc_data.topics import topics

    for topic in TOPICS:
        label = topic
        while label not in topics:
            # An entry is a pair that starts with the label, or the name of another entry.
            entry = pydoc.Helper.topics[label]
            label = entry if isinstance(entry, str) else entry[0]
        for paragraph in re.split(r"\n\s*\n", topics[label])[1:8]:
            if re.match(r"^\s|^\w+(\(.*\))?$|.*\n[*=-]{3,}", paragraph) or "::=" in paragraph:
                continue
            sentence = _first_sentences(re.sub(r"[\"*](\S[^\"*]*)[\"*]", r"\1", paragraph), MAX_TOPIC_CHARS)
            if sentence is not None:
                yield Fact("topic", TOPICS[topic], sentence)
                break


def build_facts() -> list[Fact]:
    """All facts, each question family and name once, in a fixed order."""
    facts: dict[tuple[str, str], Fact] = {}

    def add(new: Iterator[Fact]) -> None:
        for fact in new:
            facts.setdefault((fact.kind, fact.name), fact)

    for module in MODULES:
        add(_module_facts(module))
        for name, obj in _members(module):
            add(_object_facts(name, obj, False, module in SIGNATURE_MODULES))
    for path in CLASSES:
        for name, obj in _class_members(path):
            add(_object_facts(name, obj, True, True))
    add(_topic_facts())
    add(Fact("topic", f"the {word} keyword", answer) for word, answer in KEYWORDS.items())
    add(Fact("chat", questions[0], answer, questions) for questions, answer in SMALLTALK)
    add(Fact("long", questions[0], answer, questions) for questions, answer in LONG_ANSWERS)
    return list(facts.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect pyhelp's facts from this Python's documentation.")
    parser.add_argument("--out", type=Path, default=FACTS_FILE)
    arguments = parser.parse_args()
    facts = build_facts()
    save_facts(facts, arguments.out)
    print(f"{len(facts)} facts -> {arguments.out}")


if __name__ == "__main__":
    main()
