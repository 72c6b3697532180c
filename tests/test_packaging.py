"""What ships: every package is listed, the bundled model goes along, importing stays cheap."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAYS_OUT = {"millstream.backends.bundled.making"}
"""What a checkout has and a wheel does not: the code that made the bundled model."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {"millstream"}
    for init in ROOT.glob("*/**/__init__.py"):
        parts = init.relative_to(ROOT).parent.parts
        if not any(part.startswith(".") or part in ("build", "tests") for part in parts):
            found.add(".".join(("millstream", *parts)))
    assert listed == found - STAYS_OUT
    assert found >= STAYS_OUT


def test_every_package_says_in_its_first_line_what_lives_there():
    for name in PROJECT["tool"]["setuptools"]["packages"]:
        init = ROOT.joinpath(*name.split(".")[1:], "__init__.py")
        assert re.match(r'""".+\.', init.read_text()), name


def test_importing_loads_neither_torch_nor_transformers():
    code = (
        "import sys, millstream, millstream.engine, millstream.scheduler, millstream.api.cli.main\n"
        "heavy = {'torch', 'transformers', 'llama_cpp'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} were imported' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve():
    import millstream

    for name in millstream.__all__:
        assert getattr(millstream, name) is not None
