"""Facts of the machine in a report."""

import subprocess
from pathlib import Path

from millstream.benchmarks.environment import commit, cpu_name


def test_the_cpu_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Mill 9000\nmodel name\t: other\n")
    assert cpu_name(file) == "Mill 9000"
    assert cpu_name(tmp_path / "nothing")


def test_the_commit_says_when_files_differ_from_it(tmp_path: Path) -> None:
    assert commit(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert commit(tmp_path) is None
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "-m", "first", "--no-gpg-sign")
    clean = commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("b")
    assert commit(tmp_path) == f"{clean}+changes"
