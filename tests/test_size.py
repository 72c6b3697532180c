"""Files, functions, parameters and imports stay within sizes that can be read.

Exceptions are listed beside their reasons. An exception that is no longer needed fails its test, so
the lists only shrink.
"""

import ast
import subprocess
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8

LONG_FILES = {
    "api/server/metrics/table.py": "one entry per metric, read as a table",
    "api/server/static/style.css": "the page has one sheet",
    "backends/native/csrc/sampling.cpp": "its passes share one template, which the compiler inlines",
}
"""Files of more than MAX_LINES lines, each with its reason."""

LONG_FUNCTIONS = {
    "engine/model.py::InstalledModel.start": "every part made is undone where a later one fails",
    "scheduler/request.py::Request.__init__": "each field is stored once",
}
"""Functions of more than MAX_FUNCTION_LINES lines, as path::name, each with its reason."""

MANY_PARAMETERS = {
    "backends/fake.py::FakeBackend.__init__": "each parameter is one field of the model that it plays",
    "engine/intake.py::Intake._request": "hands on what a request asks for, field by field",
    "scheduler/request.py::Request.__init__": "one parameter for each thing a request asks for",
}
"""Functions with more than MAX_PARAMETERS parameters, as path::name, each with its reason."""

WRITTEN = {".py", ".pyi", ".cpp", ".h", ".js", ".css", ".html"}
"""Suffixes of the files that people write and read."""


@cache
def written_files() -> list[Path]:
    """Files outside of tests/ that git tracks or would; without git, those in no hidden or built folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        paths = [
            path for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith((".", "build"))
        ]
    outside = [path for path in paths if path.relative_to(ROOT).parts[0] != "tests"]
    return sorted(path for path in outside if path.suffix in WRITTEN and path.is_file())


def python_files() -> list[Path]:
    return [path for path in written_files() if path.suffix == ".py"]


def functions_of(path: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method of a file under its qualified name."""
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((prefix + child.name, child))
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(path.read_text()), "")
    return found


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters that a caller gives: without self and cls; *args and **kwargs are one each."""
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [each.arg for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def check(measured: dict[str, int], limit: int, exceptions: dict[str, str]) -> None:
    """Everything measured is within the limit or excepted, and every exception is needed and has a reason."""
    over = {name: size for name, size in measured.items() if size > limit}
    assert not {name: size for name, size in over.items() if name not in exceptions}, f"over {limit}"
    assert not [name for name in exceptions if name not in over], "these need no exception any more"
    assert all(reason.strip() for reason in exceptions.values())


def test_files_are_short():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in written_files()}
    check(sizes, MAX_LINES, LONG_FILES)


def test_functions_are_short():
    sizes = {
        f"{path.relative_to(ROOT)}::{name}": function.end_lineno - function.lineno + 1
        for path in python_files()
        for name, function in functions_of(path)
    }
    check(sizes, MAX_FUNCTION_LINES, LONG_FUNCTIONS)


def test_functions_take_few_parameters():
    sizes = {
        f"{path.relative_to(ROOT)}::{name}": num_parameters(function)
        for path in python_files()
        for name, function in functions_of(path)
    }
    check(sizes, MAX_PARAMETERS, MANY_PARAMETERS)


def import_graph(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Which module imports which others, wherever the statement stands: TYPE_CHECKING and functions too."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, source in sources.items():
        package = module.split(".") if module in packages else module.split(".")[:-1]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                graph[module].update(alias.name for alias in node.names if alias.name in sources)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *(node.module.split(".") if node.module else [])])
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    graph[module].add(whole if whole in sources else base)
        graph[module] = {name for name in graph[module] if name in sources and name != module}
    return dict(graph)


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_modules_import_each_other():
    sources = {}
    packages = set()
    for path in (path for path in written_files() if path.suffix in (".py", ".pyi")):
        parts = ["millstream", *path.relative_to(ROOT).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
            packages.add(".".join(parts))
        sources[".".join(parts)] = path.read_text()
    graph = import_graph(sources, packages)
    assert sum(map(len, graph.values())) > len(graph)
    assert circle_in(graph) is None


@pytest.mark.parametrize(
    "back",
    [
        "from .b import x",
        "import m.b",
        "if TYPE_CHECKING:\n    from . import b",
        "def f():\n    from m.b import x",
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(back):
    sources = {"m": "", "m.a": back, "m.b": "from .a import y"}
    assert set(circle_in(import_graph(sources, {"m"}))) == {"m.a", "m.b"}


def test_an_exception_that_is_not_needed_fails():
    with pytest.raises(AssertionError, match="no exception"):
        check({"a.py": 3}, 4, {"a.py": "was long"})
    with pytest.raises(AssertionError, match="over 4"):
        check({"a.py": 5}, 4, {})
