"""Checks the torch worker on a GPU, step by step, and says where the first fault lies; see gpu_check.sh.

Each step of `gpu_steps` has a process and a time limit of its own, so that none takes the others down. Here
only the standard library is imported: what else is missing is one of the findings.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from .limited import run_limited

SECONDS = 300.0
"""For all steps together, unless a flag says otherwise."""
_FAULT_LINES = 12
_WIDTH = 180
_SMI = ("name", "driver_version", "memory.total", "memory.free", "compute_cap", "mig.mode.current")


@dataclass(frozen=True)
class Step:
    """One step, by the name of its function in `gpu_steps`."""

    name: str
    seconds: float
    """After so many it is ended; after n times as many where all steps together are given n * SECONDS."""
    needs: tuple[str, ...] = ()
    """Steps without whose success it is not tried."""


STEPS = (
    Step("packages", 60),
    Step("device", 60),
    Step("checkpoints", 90, ("device",)),
    Step("native_tokens", 60, ("packages", "checkpoints")),
    Step("module_tokens", 90, ("packages", "checkpoints")),
    Step("engine_tokens", 60, ("native_tokens",)),
    Step("w2_generate", 60, ("checkpoints",)),
    Step("w2_millstream", 60, ("native_tokens",)),
    Step("w1_generate", 60, ("w2_generate",)),
    Step("w1_millstream", 60, ("w2_millstream",)),
)


@dataclass(kw_only=True)
class Result:
    """What became of a step."""

    name: str
    status: str
    """passed, failed, timed out, or skipped."""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    """What the step has found out."""
    fault: list[str] = field(default_factory=list)
    """The last lines of what went wrong."""

    @property
    def passed(self) -> bool:
        """Whether steps that need this one may go on."""
        return self.status == "passed"


def run_step(step: Step, arguments: Sequence[str], environment: Mapping[str, str], out: Path) -> Result:
    """Run a step in a process of its own, which writes its details or its fault to `out`."""
    command = [sys.executable, "-P", "-m", f"{__package__}.gpu_steps", step.name, str(out), *arguments]
    started = monotonic()
    ended = run_limited(command, environment, step.seconds)
    result = Result(name=step.name, status="failed", seconds=monotonic() - started)
    said = ended.lines[-_FAULT_LINES:]
    if ended.returncode is None:
        result.status = "timed out"
        result.fault = [*said, f"not done after {step.seconds:.0f} s"]
    elif not out.exists():
        result.fault = [f"the process ended with {ended.returncode}", *said]
    else:
        answer = json.loads(out.read_text(encoding="utf-8"))
        result.details = answer["details"]
        result.fault = answer["fault"][-_FAULT_LINES:]
        result.status = "failed" if result.fault else "passed"
    return result


def run_steps(
    steps: Sequence[Step], arguments: Sequence[str], packages: Path | None, seconds: float
) -> list[Result]:
    """All steps, one after the other, each printed as it ends; they have so many seconds together."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment = {**os.environ, **offline, "PYTHONFAULTHANDLER": "1"}
    if packages is not None:
        environment["PYTHONPATH"] = os.pathsep.join([environment.get("PYTHONPATH", ""), str(packages)])
    results: dict[str, Result] = {}
    end = monotonic() + seconds
    with TemporaryDirectory(prefix="millstream-gpu-check-") as folder:
        for step in steps:
            missing = [name for name in step.needs if not results[name].passed]
            if missing:
                result = Result(name=step.name, status="skipped", fault=[f"needs {name}" for name in missing])
            else:
                out = Path(folder, f"{step.name}.json")
                limit = min(step.seconds * seconds / SECONDS, end - monotonic())
                limited = replace(step, seconds=max(0.0, limit))
                result = run_step(limited, [folder, *arguments], environment, out)
            results[step.name] = result
            print(_line(result), flush=True)
    return list(results.values())


def beside_generate(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """By workload, how many times generate's tokens per second Millstream gives, and where they agree.

    In the short type that speed is measured in, rounding alone makes some first tokens differ.
    """
    details = {result.name: result.details for result in results if result.passed}
    found = {}
    for workload in ("w2", "w1"):
        ours, theirs = details.get(f"{workload}_millstream"), details.get(f"{workload}_generate")
        if ours is not None and theirs is not None:
            pairs = list(zip(ours["first_tokens"], theirs["first_tokens"], strict=True))
            found[workload] = {
                "times_tokens_per_second": ours["tokens_per_second"] / theirs["tokens_per_second"],
                "same_first_tokens": sum(own == other for own, other in pairs) / len(pairs),
            }
    return found


def nvidia_smi() -> list[dict[str, str]]:
    """What the driver's own tool says of each GPU; empty where there is no such tool."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [
        dict(zip(_SMI, (cell.strip() for cell in line.split(",")), strict=False))
        for line in said.splitlines()
        if line.strip()
    ]


def _line(result: Result) -> str:
    said = result.fault[-1:] if result.fault else []
    if result.passed:
        said = [
            f"{name} {_short(value)}" for name, value in result.details.items() if not isinstance(value, list)
        ]
    return f"{result.name:16}{result.status:10}{result.seconds:7.1f} s  {', '.join(said)}"[:_WIDTH]


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu_check.sh",
        description="Check the torch worker on a GPU, step by step, and say where the first fault lies.",
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="take the same way on the CPU, with a tiny model")
    add("--device", metavar="NAME", help="cuda by default")
    add("--shape", metavar="NAME", help="of the model that is measured; qwen2-0.5b by default")
    add("--requests", type=int, metavar="N", help="of W1; 64 by default")
    add("--seconds", type=float, default=SECONDS, metavar="N", help="for all steps together; 300 by default")
    add(
        "--packages",
        type=Path,
        metavar="FOLDER",
        help="where packages lie that this interpreter lacks: pip install --no-deps --target FOLDER msgspec",
    )
    add(
        "--output-json",
        type=Path,
        metavar="FILE",
        help="write what each step found out here",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the steps; 0 if all have passed."""
    parser = _parser()
    options = parser.parse_args(argv)
    requests = options.requests if options.requests is not None else 2 if options.dry_run else 64
    if requests < 1:
        parser.error(f"--requests is {requests}; allowed: 1 or more")
    device = options.device or ("cpu" if options.dry_run else "cuda")
    shape = options.shape or ("tiny" if options.dry_run else "qwen2-0.5b")
    results = run_steps(STEPS, [device, shape, str(requests)], options.packages, options.seconds)
    faults = [result for result in results if result.status in ("failed", "timed out")]
    compared = beside_generate(results)
    for workload, figures in compared.items():
        print(
            f"{workload}: {figures['times_tokens_per_second']:.2f} times generate's tokens per second, "
            f"{figures['same_first_tokens']:.0%} of first tokens the same"
        )
    if faults:
        print(f"\nfirst fault: {faults[0].name}", *faults[0].fault, sep="\n  ")
    if options.output_json is not None:
        report = {
            "device": device,
            "shape": shape,
            "requests": requests,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "gpus": nvidia_smi(),
            "first_fault": faults[0].name if faults else None,
            "beside_generate": compared,
            "steps": [asdict(result) for result in results],
        }
        options.output_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
