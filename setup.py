"""Builds `millstream.backends.native._kernels`: every C++ source once per level of CPU features, one module.

The module is optional: where it cannot be built the package installs without it, `millstream doctor` says so,
and models run on plain torch.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("backends/native/csrc")
FLAGS = ["-std=c++17", "-O3", "-g0", "-pthread", "-fvisibility=hidden", "-fno-math-errno"]
# The order of roundings belongs to the kernels' contract: fused multiply-adds stand where the source says so.
FLAGS += ["-ffp-contract=off", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
FLAGS += [
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-Wno-stringop-overflow",
]  # false alarms of GCC 12
AVX512 = ["f", "bw", "vl", "dq", "bf16", "vnni"]
ONCE = ("module", "threads")
"""Sources that are compiled for every CPU alike."""
LEVELS: dict[str, list[str]] = {"generic": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS["avx2"] = ["-mavx2", "-mfma"]
    LEVELS["avx512"] = [*LEVELS["avx2"], *(f"-mavx512{part}" for part in AVX512), "-mprefer-vector-width=512"]


class BuildKernels(build_ext):
    """Compiles the sources of `ONCE`, and every other one once per level."""

    def build_extension(self, ext: Extension) -> None:
        """Compile what is older than its sources, then link."""
        folder = Path(self.build_temp).resolve() / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        sources = sorted(path for path in CSRC.glob("*.cpp") if path.stem not in ONCE)
        newest = max(path.stat().st_mtime for path in [Path("setup.py"), *CSRC.glob("*.h")])

        def compiled(level: str, flags: list[str], source: Path) -> str:
            output = folder / level
            target = output / source.with_suffix(".o")
            if not target.is_file() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
                self.compiler.compile(
                    [str(source)],
                    output_dir=str(output),
                    macros=[("MILLSTREAM_LEVEL", level), (f"MILLSTREAM_{level.upper()}", "1")],
                    include_dirs=[str(folder)],
                    extra_postargs=[*FLAGS, *flags],
                )
            return str(target)

        objects: list[str] = []
        built = []
        for level, flags in LEVELS.items():
            try:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    objects += pool.map(partial(compiled, level, flags), sources)
            except CompileError:
                if level == "generic":
                    raise
                print(f"the compiler knows no level {level}", file=sys.stderr)
                continue
            built.append(level)
        _write_tables(folder / "tables.inc", built, [path.stem for path in sources])
        objects += [compiled("module", [], CSRC / f"{name}.cpp") for name in ONCE]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = target.with_suffix(".linked")
        self.compiler.link_shared_object(objects, str(linked), extra_postargs=["-pthread"], target_lang="c++")
        linked.replace(target)  # whoever runs the former one keeps it


def _write_tables(path: Path, levels: list[str], sources: list[str]) -> None:
    """The list of method tables that module.cpp collects; left alone where it already says the same."""
    text = "".join(
        f"LEVEL({level}, {' '.join(f'TABLE({level}, {source})' for source in sources)})\n" for level in levels
    )
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
        Path(path.parent / "module" / CSRC / "module.o").unlink(missing_ok=True)


extension: Any = Extension(
    "millstream.backends.native._kernels",
    sources=[str(path) for path in sorted(CSRC.glob("*.cpp"))],
    depends=[str(path) for path in sorted(CSRC.glob("*.h"))],
    language="c++",
    optional=True,
)

if __name__ == "__main__":
    setup(ext_modules=[extension], cmdclass={"build_ext": BuildKernels})
