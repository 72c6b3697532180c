"""What each part of the tests needs beside the light packages, and `--quick`, which runs the rest.

A marker stands on whole folders and files here, and on single tests beside them. What has none runs without
torch, llama.cpp, clients and a browser: `make quick` proves it in an environment without these.

Before any test imports torch, it is bound to the level of CPU features that MILLSTREAM_CPU_LEVEL forces.
"""

import os
from pathlib import Path

import pytest

from millstream.backends.machine.cpu_level import bind_libraries

bind_libraries()  # before configurations further down, which may import torch

TESTS = Path(__file__).parent
NEEDS = {
    "torch": (
        "api/cli/test_served_models.py",
        "api/server/test_load.py",
        "api/test_models.py",
        "api/server/test_malformed.py",
        "backends/answers",
        "backends/contract",
        "backends/export",
        "backends/machine/test_openmp.py",
        "backends/machine/test_pages.py",
        "backends/native",
        "backends/torch",
        "benchmarks/test_gpu_check.py",
        "benchmarks/test_kernels.py",
        "benchmarks/test_quality.py",
        "benchmarks/test_random_checkpoint.py",
        "benchmarks/test_serve.py",
        "benchmarks/test_serve_overhead.py",
        "benchmarks/test_serve_prompts.py",
        "benchmarks/test_transformers_reads_shapes.py",
        "engine/test_torch_embeddings.py",
        "engine/test_torch_engine.py",
        "test_readme.py",
    ),
    "llamacpp": (
        "backends/export",
        "backends/llamacpp/test_adapters.py",
        "backends/llamacpp/test_backend.py",
        "backends/llamacpp/test_embeddings.py",
        "backends/llamacpp/test_fixed_shapes.py",
        "backends/llamacpp/test_tokenizer.py",
        "backends/llamacpp/test_worker.py",
        "benchmarks/test_compare.py",
        "engine/test_bad_gguf.py",
        "engine/test_llamacpp_adapters.py",
        "engine/test_llamacpp_embeddings.py",
        "engine/test_llamacpp_engine.py",
    ),
    "clients": (
        "api/clients",
        "api/server/test_responses.py",
        "api/server/test_responses_background.py",
        "api/server/test_responses_kept.py",
        "api/server/test_responses_refused.py",
        "api/server/test_schema.py",
    ),
    "page": ("api/server/test_page.py",),
    "slow": ("api/server/test_serving.py",),
}
"""Marker -> folders and files below tests/ that have it."""


def markers_of(path: Path) -> set[str]:
    """Markers of a folder or file below tests/, its own and those of the folders around it."""
    above = {path, *path.parents}
    return {marker for marker, places in NEEDS.items() if any(TESTS / place in above for place in places)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help=f"only tests marked with none of: {', '.join(NEEDS)}"
    )


def pytest_configure(config: pytest.Config) -> None:
    """One of several processes keeps to its share of the CPUs."""
    worker = getattr(config, "workerinput", None)
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        share = cpus[int(worker["workerid"].removeprefix("gw")) % len(cpus) :: worker["workercount"]]
        os.sched_setaffinity(0, share)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules that are left out are not imported: they may name what is not installed."""
    return True if config.getoption("--quick") and markers_of(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker in sorted(markers_of(item.path)):
            item.add_marker(marker)
    if config.getoption("--quick"):
        left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in NEEDS)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
