"""The Jinja environment that transformers documents for chat templates, in a sandbox.

Imported when the first conversation is rendered, since Jinja takes a while to import.
"""

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace


def make_environment() -> SandboxedEnvironment:
    """An environment for the templates of one model.

    Blocks are trimmed, `tojson` does not escape HTML, and there are `{% break %}`, `{% continue %}` and
    `{% generation %}`.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=lambda *pairs, **values: dict(*pairs, **values),
        namespace=_SafeNamespace,
    )
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only groups its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _SafeNamespace(Namespace):
    """A namespace without private attributes, which lead out of the sandbox."""

    def __init__(*arguments: Any, **values: Any) -> None:
        self, *rest = arguments
        Namespace.__init__(self, *rest, **values)
        for name in dict(*rest, **values):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the private name {name}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
