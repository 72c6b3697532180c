"""`millstream doctor`: what this machine has, and what a model would take on it."""

import argparse
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from ...backends.machine.cpu_level import CPU_LEVEL_VARIABLE, forced_level
from ...backends.machine.hardware import Hardware, inspect_hardware
from ...backends.native import Missing, best_level
from ...engine import AsyncEngine, ModelConfig
from ...engine.memory_plan import MemoryPlan, gib
from .options import add_engine_flags, add_model_argument, model_config
from .running import run_async

_PACKAGES = {
    "millstream": "",
    "torch": "needed for Hugging Face checkpoints",
    "transformers": "needed for Hugging Face checkpoints",
    "tokenizers": "needed for every model",
    "huggingface-hub": "needed to download models",
    "llama-cpp-python": "needed for GGUF files: pip install llama-cpp-python gguf",
    "triton": "needed for fast kernels on a GPU: pip install triton",
    "uvloop": "makes the event loop faster",
}
"""Package -> what it is for."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `doctor`."""
    add_model_argument(parser, "also plan the memory of this model: folder, hub id or bundled name")
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    config = model_config(options) if "model" in options else None
    hardware = inspect_hardware()
    for line in (*describe_software(), "", *describe_hardware(hardware), "", *describe_kernels(hardware)):
        print(line)
    if config is not None:
        print()
        for line in run_async(_describe_model(config)):
            print(line)
    return 0


def describe_software() -> Iterator[str]:
    """Versions of what is installed, and what is missing and why it would be wanted."""
    yield _line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package, purpose in _PACKAGES.items():
        try:
            yield _line(package, version(package))
        except PackageNotFoundError:
            yield _line(package, f"not installed ({purpose})")


def describe_hardware(hardware: Hardware) -> Iterator[str]:
    """Cores, CPU features, memory and GPUs."""
    yield _line("cores", f"{hardware.physical_cores} physical, for this process")
    yield _line("CPU features", ", ".join(sorted(hardware.cpu_features)) or "none that are made use of")
    level = forced_level()
    if level is not None:
        yield _line("CPU level", f"{level}, forced by {CPU_LEVEL_VARIABLE}; llama.cpp runs as compiled")
    memory = hardware.memory
    yield _line(
        "memory", f"{gib(memory.limit_bytes)} ({memory.source}), {gib(memory.used_bytes)} of it in use"
    )
    for gpu in hardware.gpus:
        yield _line(f"GPU {gpu.index}", f"{gpu.name}, {gib(gpu.memory_bytes)}, driver {gpu.driver}")
    if not hardware.gpus:
        yield _line("GPU", "none that NVIDIA's driver shows")


def describe_kernels(hardware: Hardware) -> Iterator[str]:
    """Which implementation of attention and its companions a torch model runs on a CPU."""
    level = best_level()
    if isinstance(level, Missing):
        yield _line("kernels", f"plain torch; the native kernels are {level.reason}")
    else:
        yield _line("kernels", f"native, level {level}")
    compiler = "none" if hardware.compiler is None else str(hardware.compiler)
    yield _line("C++ compiler", compiler)


async def _describe_model(config: ModelConfig) -> list[str]:
    """The model's files and memory plan; no weight is read.

    Raises:
        ModelError, InvalidArgument, NotSupported: it could not be installed.
    """
    async with AsyncEngine() as engine:
        info = await engine.install_model(config)
        plan = engine.memory_plan(config.installed_name)
    size = f"{info.num_parameters / 1e6:,.1f} M parameters" if info.num_parameters else "unknown size"
    return [
        _line("model", f"{info.name}: {info.architecture}, {size}, context {info.max_length} tokens"),
        _line("files", f"{info.path} (backend {info.backend})"),
        *describe_plan(plan, config.max_num_seqs),
    ]


def describe_plan(plan: MemoryPlan, max_num_seqs: int) -> Iterator[str]:
    """The memory plan in plain words."""
    tokens = plan.num_blocks * plan.block_size
    full = tokens // plan.max_length
    allowed = int(plan.limit_bytes * plan.memory_fraction)
    yield _line("memory plan", f"{gib(plan.total)} in all; {gib(allowed)} may be used, of which")
    yield _line("", f"{gib(plan.used_bytes)} are in use by other things now")
    yield _line("", f"{gib(plan.weights)} for the weights")
    yield _line("", f"{gib(plan.activations)} for the numbers of one step")
    grows = ", taken as they are used" if plan.cache_grows else ""
    yield _line("", f"{gib(plan.num_blocks * plan.kv_per_block)} for the KV cache: {tokens:,} tokens{grows}")
    yield _line(
        "requests",
        f"up to {plan.max_length:,} tokens each, prompt and output; up to {max_num_seqs} at the same time, "
        f"{min(full, max_num_seqs)} of them at full length",
    )


def _line(title: str, text: str) -> str:
    return f"{title:18}{text}"
