"""Facts about this machine, and about what of it this process may use; found without torch.

Functions that read the files of Linux take the root they start from, so that a test can lay out its own.
"""

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

CPU_FEATURES = frozenset(
    {
        "avx2",
        "fma",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_bf16",
        "avx512_vnni",
        "avx_vnni",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
        "neon",
        "bf16",
        "sve",
    }
)
"""Features that `cpu_features` looks for, by the names of Linux ("bf16" is ARM's)."""
_ARM_NAMES = {"asimd": "neon"}
_MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_ROOT = Path("/")


class MemoryLimit(msgspec.Struct, frozen=True):
    """The tightest limit on main memory for this process, in bytes."""

    limit_bytes: int
    used_bytes: int
    """In use by everything that counts against the limit, without file cache the kernel can drop."""
    source: str
    """Where the limit comes from: "machine", or a cgroup."""
    shared: bool = True
    """Other programs live by the same memory; False for a device that is there for models alone."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU that NVIDIA's driver shows."""

    index: int
    name: str
    memory_bytes: int
    driver: str


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """Everything this module finds out."""

    physical_cores: int
    memory: MemoryLimit
    cpu_features: frozenset[str]
    compiler: Path | None
    gpus: tuple[Gpu, ...]


def inspect_hardware() -> Hardware:
    """Look at this machine, now."""
    return Hardware(
        physical_cores=physical_cores(),
        memory=memory_limit(),
        cpu_features=cpu_features(),
        compiler=find_compiler(),
        gpus=find_gpus(),
    )


def physical_cores(root: Path = _ROOT, allowed: Iterable[int] | None = None) -> int:
    """Physical cores this process may keep busy: by its affinity, and by the CPU quota of its cgroups.

    Args:
        allowed: logical CPUs the process may run on; by default its affinity mask.

    Returns:
        At least 1. A quota of a part of a core counts as a whole one.
    """
    if allowed is None:
        allowed = _affinity()
    topology = root / "sys/devices/system/cpu"
    cores = set()
    for cpu in allowed:
        package = _read_text(topology / f"cpu{cpu}/topology/physical_package_id")
        core = _read_text(topology / f"cpu{cpu}/topology/core_id")
        cores.add((package, core) if core is not None else cpu)
    count = len(cores)
    if not (topology / "cpu0/topology").is_dir():
        import psutil

        count = min(psutil.cpu_count(logical=False) or count, count)
    quota = cpu_quota(root)
    return max(1, count if quota is None else min(count, ceil(quota)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPU time this process's cgroups may use, in CPUs; None without a quota."""
    quotas = []
    for version, folder in _cgroup_folders(root, "cpu"):
        if version == 2:
            words = (_read_text(folder / "cpu.max") or "max").split()
            quota, period = words[0], words[1] if len(words) > 1 else "100000"
        else:
            quota = _read_text(folder / "cpu.cfs_quota_us") or "-1"
            period = _read_text(folder / "cpu.cfs_period_us") or "100000"
        if quota.isdecimal() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = _ROOT) -> MemoryLimit:
    """The limit with the least room left: the machine's memory, or that of a cgroup at any level above."""
    limits = [_machine_memory(root)]
    for version, folder in _cgroup_folders(root, "memory"):
        names = ("memory.max", "memory.current") if version == 2 else _MEMORY_V1
        limit, usage = (_read_text(folder / name) or "" for name in names)
        if limit.isdecimal() and usage.isdecimal() and int(limit) < limits[0].limit_bytes:
            used = max(0, int(usage) - _file_cache(folder, version))
            source = f"cgroup v{version} {_ROOT / folder.relative_to(root)}"
            limits.append(MemoryLimit(int(limit), used, source))
    return min(limits, key=lambda limit: limit.limit_bytes - limit.used_bytes)


def cpu_features(root: Path = _ROOT, machine: str | None = None) -> frozenset[str]:
    """Those of CPU_FEATURES that the CPU has and the kernel lets programs use.

    Read from /proc/cpuinfo. Where that is missing, only "neon" is known, from the architecture's name
    (`machine`, by default this one's), because every 64-bit ARM has it.
    """
    text = _read_text(root / "proc/cpuinfo") or ""
    found: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = {_ARM_NAMES.get(word, word) for word in value.split()}
            break
    if (machine or platform.machine()).lower() in ("arm64", "aarch64"):
        found.add("neon")
    return CPU_FEATURES & found


def has_bfloat16(features: frozenset[str]) -> bool:
    """Whether a CPU with these features multiplies bfloat16 numbers itself."""
    return not features.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def find_compiler() -> Path | None:
    """The C++ compiler: what CXX names, else the first usual one on PATH; None without one."""
    named = os.environ.get("CXX")
    names = (named,) if named else ("c++", "g++", "clang++", "cl")
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    return None if found is None else Path(found)


def find_gpus(nvml: Any = None) -> tuple[Gpu, ...]:
    """GPUs that NVIDIA's driver shows; none where there is no driver.

    Args:
        nvml: the module to ask; by default pynvml.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return ()
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        driver = _as_text(nvml.nvmlSystemGetDriverVersion())
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                index=i,
                name=_as_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handle).total,
                driver=driver,
            )
            for i, handle in enumerate(handles)
        )
    finally:
        nvml.nvmlShutdown()


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _machine_memory(root: Path) -> MemoryLimit:
    numbers = _numbers(root / "proc/meminfo")
    total, available = numbers.get("MemTotal:"), numbers.get("MemAvailable:")
    if total is None or available is None:
        import psutil

        memory = psutil.virtual_memory()
        return MemoryLimit(memory.total, memory.total - memory.available, "machine")
    return MemoryLimit(total * 1024, (total - available) * 1024, "machine")


def _file_cache(folder: Path, version: int) -> int:
    """Bytes of a cgroup's file cache; those of its children included."""
    numbers = _numbers(folder / "memory.stat")
    prefix = "" if version == 2 else "total_"
    return sum(numbers.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))


def _cgroup_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of the cgroups that hold this process for `controller`, the innermost first.

    A mount shows the part of the hierarchy below its own root, which in a container is seldom "/".
    """
    own: dict[str, str] = {}
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in (_read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        mount_root, mount_point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        version = {"cgroup2": 2, "cgroup": 1}.get(kind)
        if version is None or (version == 1 and controller not in options.split(",")):
            continue
        name = "" if version == 2 else controller
        if name not in own:
            continue
        top = root / mount_point.lstrip("/")
        relative = Path(own[name].lstrip("/"))
        base = mount_root.strip("/")
        if base and relative.is_relative_to(base):
            relative = relative.relative_to(base)
        folder = top / relative
        if ".." in relative.parts or not folder.is_dir():
            folder = top
        yield version, folder
        while folder != top:
            folder = folder.parent
            yield version, folder


def _numbers(path: Path) -> dict[str, int]:
    """First word -> second word of each line, where the second is a number."""
    lines = (line.split() for line in (_read_text(path) or "").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _read_text(path: Path) -> str | None:
    """Content of a file without blanks at its ends; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
