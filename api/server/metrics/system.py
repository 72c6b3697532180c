"""SystemMonitor: what the server, its workers and the GPUs use of the machine."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import psutil

from ....backends.machine.hardware import cpu_quota

_SHORTEST_INTERVAL = 1.0
"""Seconds over which utilisation is measured at least; shorter ones show the clock's grain."""


class ProcessReading(msgspec.Struct, frozen=True):
    """The server's process, or all its child processes together."""

    cpu_seconds: float
    """User and system time; a child's stays counted after its end."""
    resident_bytes: int
    anonymous_bytes: int | None
    """Resident memory that no file backs; None where it is unknown."""


class GpuReading(msgspec.Struct, frozen=True):
    """One GPU that NVIDIA's driver shows."""

    index: int
    utilization: float
    """Percentage of time in which a kernel ran."""
    used_bytes: int
    size_bytes: int


class SystemReading(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment."""

    server: ProcessReading
    workers: ProcessReading
    start_time: float
    """Of the server, in seconds since the epoch."""
    open_files: int | None
    cpu_utilization: float
    """Percentage of the CPUs that the process may use, 0 to 100, over the time since an earlier reading."""
    gpus: tuple[GpuReading, ...]


class SystemMonitor:
    """Reads processes through psutil and /proc, GPUs through NVIDIA's management library."""

    def __init__(
        self, *, nvml: Any = None, root: Path = Path("/proc"), clock: Callable[[], float] = monotonic
    ) -> None:
        """`nvml` is by default pynvml; where it or the driver is missing, there are no GPUs."""
        self._process = psutil.Process()
        self._root = root
        self._clock = clock
        self._cpus = _usable_cpus()
        self._tells_anonymous = _anonymous_bytes(root, self._process.pid) is not None
        self._children: dict[tuple[int, float], float] = {}  # (pid, creation time) -> CPU seconds last seen
        self._ended_cpu_seconds = 0.0
        self._nvml, self._gpus = _open_gpus(nvml)
        self._utilization = 0.0
        self._measured_at = clock()
        self._measured_cpu = self._read_server().cpu_seconds + self._read_workers().cpu_seconds

    def read(self) -> SystemReading:
        """Look, now."""
        server, workers = self._read_server(), self._read_workers()
        self._measure(server.cpu_seconds + workers.cpu_seconds)
        return SystemReading(
            server=server,
            workers=workers,
            start_time=self._process.create_time(),
            open_files=self._process.num_fds() if hasattr(self._process, "num_fds") else None,
            cpu_utilization=self._utilization,
            gpus=tuple(self._read_gpus()),
        )

    def _measure(self, cpu_seconds: float) -> None:
        """Bring the utilisation up to date, unless the last measurement is hardly over."""
        now = self._clock()
        passed = now - self._measured_at
        if passed >= _SHORTEST_INTERVAL:
            busy = (cpu_seconds - self._measured_cpu) / passed / self._cpus
            self._utilization = min(max(100 * busy, 0.0), 100.0)
            self._measured_at, self._measured_cpu = now, cpu_seconds

    def _read_server(self) -> ProcessReading:
        with self._process.oneshot():
            used = self._process.cpu_times()
            resident: int = self._process.memory_info().rss
        return ProcessReading(
            used.user + used.system, resident, _anonymous_bytes(self._root, self._process.pid)
        )

    def _read_workers(self) -> ProcessReading:
        """All descendants together. One that ends while it is looked at counts as ended."""
        alive: dict[tuple[int, float], float] = {}
        resident = anonymous = 0
        for pid in child_pids(self._process, self._root):
            try:
                child = psutil.Process(pid)
                with child.oneshot():
                    used = child.cpu_times()
                    alive[pid, child.create_time()] = used.user + used.system
                    resident += child.memory_info().rss
            except psutil.Error:
                continue
            anonymous += _anonymous_bytes(self._root, pid) or 0
        for known, cpu_seconds in self._children.items():
            if known not in alive:
                self._ended_cpu_seconds += cpu_seconds
        self._children = alive
        return ProcessReading(
            self._ended_cpu_seconds + sum(alive.values()),
            resident,
            anonymous if self._tells_anonymous else None,
        )

    def _read_gpus(self) -> Iterable[GpuReading]:
        for index, handle in enumerate(self._gpus):
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                utilization = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
            except self._nvml.NVMLError:
                # Lost, or a partition that tells no utilisation: it has no readings, the others have.
                continue
            yield GpuReading(index, float(utilization), memory.used, memory.total)


def child_pids(process: psutil.Process, root: Path = Path("/proc")) -> list[int]:
    """Ids of a process's descendants: from Linux's lists of children, else by looking at every process."""
    if not (root / f"{process.pid}/task/{process.pid}/children").exists():
        return [child.pid for child in process.children(recursive=True)]
    found: list[int] = []
    left = [process.pid]
    while left:
        for children in (root / str(left.pop()) / "task").glob("*/children"):
            try:
                pids = [int(word) for word in children.read_text().split()]
            except OSError:  # the thread has ended
                continue
            found += pids
            left += pids
    return found


def _anonymous_bytes(root: Path, pid: int) -> int | None:
    """RssAnon of a process; None where the kernel does not tell."""
    try:
        status = (root / str(pid) / "status").read_text()
    except OSError:
        return None
    _, found, rest = status.partition("RssAnon:")
    return int(rest.split(maxsplit=1)[0]) * 1024 if found else None


def _usable_cpus() -> float:
    """Logical CPUs that the process may keep busy, by its affinity and its cgroups' quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return float(allowed) if quota is None else min(float(allowed), quota)


def _open_gpus(nvml: Any) -> tuple[Any, list[Any]]:
    """The library and its handles; no handles where it or the driver is missing."""
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            return None, []
        nvml = pynvml
    try:
        nvml.nvmlInit()
        return nvml, [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return nvml, []
