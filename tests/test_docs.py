"""Paths and links in the documentation lead to what is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FLOORS = ("engine", "backends", "scheduler", "kvcache")
SUFFIXES = "py|pyi|md|cpp|h|toml|txt|json"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ("server.md", "metrics.md")])
def test_files_and_folders_that_are_named_exist(page):
    text = page.read_text()
    named = set(re.findall(rf"`((?:[\w.-]+/)*[\w-]+\.(?:{SUFFIXES}))`", text))
    named |= set(re.findall(r"`((?:[\w.-]+/)+)`", text))
    assert not {name for name in named if not (ROOT / name).exists()}


@pytest.mark.parametrize("name", ["contributing.md", "glossary.md"])
def test_pages_that_lead_through_the_house_name_its_files(name):
    assert len(set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+)`", (ROOT / "docs" / name).read_text()))) > 10


def test_the_way_of_a_token_names_classes_and_methods_that_exist():
    named = re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", (ROOT / "docs/architecture.md").read_text())
    methods: dict[str, set[str]] = {}
    for path in (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found = (
                    each.name
                    for each in node.body
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                )
                methods.setdefault(node.name, set()).update(found)
    assert len(named) > 10
    assert not [
        (name, verb) for name, verb in named if name not in methods or (verb and verb not in methods[name])
    ]
