"""The README's Python runs and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_print_what_the_readme_says():
    blocks = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", README, re.DOTALL)
    assert blocks
    assert len(blocks) == README.count("```python")
    for code, expected in blocks:
        assert len(code.strip().splitlines()) <= 10
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {})
        assert printed.getvalue() == expected


def test_the_tree_names_only_what_exists():
    root = Path(__file__).parents[1]
    tree = re.search(r"```text\n(kvcache/.*?)```", README, re.DOTALL).group(1)
    parent = root
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            assert (parent / name).is_dir(), name
        else:
            parent = root / name
            assert parent.is_dir(), name
