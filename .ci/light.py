"""Prints what `make quick` installs: what the package and its tests require, but for what is heavy."""

import re
import tomllib
from pathlib import Path

HEAVY = {"torch", "transformers", "mypy"}

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
    if re.match(r"[\w-]+", requirement)[0] not in HEAVY:
        print(requirement)
