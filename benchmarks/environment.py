"""Where a measurement was made: machine, versions and commit, for reports that can be compared."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import gmtime, strftime

import msgspec

from ..backends.machine.cpu_level import forced_level
from ..backends.machine.hardware import inspect_hardware
from ..version import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "llama-cpp-python", "numpy", "uvloop")
_ROOT = Path(__file__).resolve().parent.parent


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the software of a measurement."""

    cpu: str
    physical_cores: int
    cpu_features: list[str]
    cpu_level: str | None
    """The level of CPU features that was forced; None: none."""
    memory_limit_bytes: int
    gpus: list[str]
    system: str
    python: str
    versions: dict[str, str]
    """Package -> version, of those that are installed."""
    commit: str | None
    """None outside of a repository; ends with "+changes" where files differ from it."""
    date: str
    """In UTC, ISO 8601."""


def find_environment() -> Environment:
    """Look at this machine and this checkout, now."""
    hardware = inspect_hardware()
    return Environment(
        cpu=cpu_name(),
        physical_cores=hardware.physical_cores,
        cpu_features=sorted(hardware.cpu_features),
        cpu_level=forced_level(),
        memory_limit_bytes=hardware.memory.limit_bytes,
        gpus=[gpu.name for gpu in hardware.gpus],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=package_versions(),
        commit=commit(_ROOT),
        date=strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as it calls itself, or its architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of the packages that speed depends on; nothing is imported."""
    found = {"millstream": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """Commit of the checkout in `folder`; None where there is none, or no git."""
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(folder, "status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def write_report(path: Path, results: msgspec.Struct) -> None:
    """Write a report's fields as JSON, and beside them the `environment`."""
    report = {**msgspec.to_builtins(results), "environment": msgspec.to_builtins(find_environment())}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
