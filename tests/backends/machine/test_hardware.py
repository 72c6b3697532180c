import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from millstream.backends.machine import hardware
from millstream.backends.machine.hardware import Gpu, MemoryLimit

GIB = 1 << 30
MOUNT_V2 = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
MOUNT_V1 = "36 31 0:33 {root} /sys/fs/cgroup/{name} rw,relatime shared:9 - cgroup cgroup rw,{controllers}"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(total: int, available: int) -> dict[str, str]:
    return {
        "proc/meminfo": f"MemTotal: {total // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
    }


def cgroup_v2(own: str, mount_root: str = "/") -> dict[str, str]:
    return {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": MOUNT_V2.format(root=mount_root) + "\n"}


def cgroup_v1(own: str, mount_root: str = "/") -> dict[str, str]:
    mounts = [("memory", "memory"), ("cpu,cpuacct", "cpu,cpuacct")]
    lines = [MOUNT_V1.format(root=mount_root, name=name, controllers=c) for name, c in mounts]
    return {
        "proc/self/cgroup": f"9:name=systemd:/x\n4:memory:{own}\n1:cpu,cpuacct:{own}\n",
        "proc/self/mountinfo": "\n".join(lines) + "\n",
    }


def topology(packages: list[tuple[int, int]]) -> dict[str, str]:
    base = "sys/devices/system/cpu"
    files = {}
    for cpu, (package, core) in enumerate(packages):
        files[f"{base}/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
        files[f"{base}/cpu{cpu}/topology/core_id"] = f"{core}\n"
    return files


def test_memory_of_a_bare_machine(tmp_path: Path) -> None:
    lay_out(tmp_path, machine(64 * GIB, 48 * GIB))
    assert hardware.memory_limit(tmp_path) == MemoryLimit(64 * GIB, 16 * GIB, "machine")


def test_memory_without_proc_comes_from_psutil(tmp_path: Path) -> None:
    limit = hardware.memory_limit(tmp_path)
    assert (limit.limit_bytes, limit.source) == (psutil.virtual_memory().total, "machine")


def test_tightest_cgroup_v2_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        **machine(64 * GIB, 48 * GIB),
        **cgroup_v2("/user/job"),
        "sys/fs/cgroup/user/memory.max": f"{8 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{6 * GIB}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": f"{GIB}\n",
    }
    lay_out(tmp_path, files)
    expected = MemoryLimit(8 * GIB, 4 * GIB, "cgroup v2 /sys/fs/cgroup/user")
    assert hardware.memory_limit(tmp_path) == expected
    lay_out(tmp_path, {"sys/fs/cgroup/user/job/memory.max": f"{4 * GIB}\n"})
    expected = MemoryLimit(4 * GIB, 1 * GIB, "cgroup v2 /sys/fs/cgroup/user/job")
    assert hardware.memory_limit(tmp_path) == expected


def test_full_machine_is_tighter_than_a_roomy_cgroup(tmp_path: Path) -> None:
    files = {
        **machine(64 * GIB, 1 * GIB),
        **cgroup_v2("/job"),
        "sys/fs/cgroup/job/memory.max": f"{32 * GIB}",
        "sys/fs/cgroup/job/memory.current": f"{GIB}",
    }
    assert hardware.memory_limit(lay_out(tmp_path, files)).source == "machine"


def test_cgroup_v1_in_a_container(tmp_path: Path) -> None:
    files = {
        **machine(64 * GIB, 48 * GIB),
        **cgroup_v1("/docker/abc", mount_root="/docker/abc"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n",
    }
    expected = MemoryLimit(2 * GIB, GIB // 2, "cgroup v1 /sys/fs/cgroup/memory")
    assert hardware.memory_limit(lay_out(tmp_path, files)) == expected


def test_unlimited_cgroup_v1(tmp_path: Path) -> None:
    files = {
        **machine(64 * GIB, 48 * GIB),
        **cgroup_v1("/"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert hardware.memory_limit(lay_out(tmp_path, files)).source == "machine"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({**cgroup_v2("/a/b"), "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None),
        ({**cgroup_v2("/a/b"), "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        (
            {
                **cgroup_v2("/a/b"),
                "sys/fs/cgroup/a/cpu.max": "50000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            0.5,
        ),
        ({**cgroup_v2("/../other"), "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                **cgroup_v1("/a"),
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ({**cgroup_v1("/a"), "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1"}, None),
    ],
)
def test_cpu_quota(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    assert hardware.cpu_quota(lay_out(tmp_path, files)) == expected


def test_physical_cores_count_siblings_once(tmp_path: Path) -> None:
    lay_out(tmp_path, topology([(0, 0), (0, 1), (1, 0), (1, 1)] * 2))
    assert hardware.physical_cores(tmp_path, range(8)) == 4
    assert hardware.physical_cores(tmp_path, [0, 4, 1]) == 2


@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("50000", 1), ("900000", 4), ("max", 4)])
def test_quota_limits_physical_cores(quota: str, cores: int, tmp_path: Path) -> None:
    files = {
        **topology([(0, i) for i in range(4)]),
        **cgroup_v2("/"),
        "sys/fs/cgroup/cpu.max": f"{quota} 100000",
    }
    assert hardware.physical_cores(lay_out(tmp_path, files), range(4)) == cores


def test_physical_cores_without_sys(tmp_path: Path) -> None:
    assert hardware.physical_cores(tmp_path, [0]) == 1
    assert hardware.physical_cores(tmp_path) >= 1


def test_cpu_features_of_x86(tmp_path: Path) -> None:
    text = "processor : 0\nvendor_id : X\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16 sse\n"
    lay_out(tmp_path, {"proc/cpuinfo": text})
    found = hardware.cpu_features(tmp_path, "x86_64")
    assert found == {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}
    assert hardware.has_bfloat16(found)
    assert not hardware.has_bfloat16(found - {"avx512_bf16", "amx_bf16"})


def test_cpu_features_of_arm(tmp_path: Path) -> None:
    assert hardware.cpu_features(tmp_path, "arm64") == {"neon"}
    assert hardware.cpu_features(tmp_path, "x86_64") == frozenset()
    lay_out(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"})
    assert hardware.cpu_features(tmp_path, "aarch64") == {"neon", "sve", "bf16"}


def test_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.find_compiler() is None
    for name in ("clang++", "special"):
        (tmp_path / name).touch(mode=0o755)
    assert hardware.find_compiler() == tmp_path / "clang++"
    monkeypatch.setenv("CXX", "special")
    assert hardware.find_compiler() == tmp_path / "special"
    monkeypatch.setenv("CXX", "absent")
    assert hardware.find_compiler() is None


class FakeNvml(SimpleNamespace):
    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        if not self.names:
            raise self.NVMLError

    def nvmlShutdown(self) -> None:
        self.is_shut = True

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self.names[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=(handle + 1) * GIB)


def test_gpus() -> None:
    nvml = FakeNvml(names=["A", "B"], is_shut=False)
    assert hardware.find_gpus(nvml) == (Gpu(0, "A", GIB, "570.1"), Gpu(1, "B", 2 * GIB, "570.1"))
    assert nvml.is_shut
    assert hardware.find_gpus(FakeNvml(names=[])) == ()


def test_this_machine() -> None:
    found = hardware.inspect_hardware()
    assert found.physical_cores >= 1
    assert found.memory.limit_bytes > found.memory.used_bytes > 0
    assert found.cpu_features <= hardware.CPU_FEATURES


def test_hardware_is_found_without_torch() -> None:
    import subprocess

    code = (
        "import sys; from millstream.backends.machine.hardware import inspect_hardware; "
        "inspect_hardware(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
