"""The steps of `gpu_check`, each run in a process of its own.

Imports stand inside the steps: what cannot be imported is the fault of those alone that need it.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compare.runners.protocol import Asked, Job, Outcome, Setting, serve_job

if TYPE_CHECKING:
    from ..backends.worker import Worker

Details = dict[str, object]

_REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "jinja2", "msgspec")
_OPTIONAL = ("psutil", "uvloop", "triton", "accelerate")
_PROMPT_LENGTHS = (5, 33, 17, 64, 1, 48)
_OUTPUT_LEN = 16
_SMALL_VOCAB = 512
"""Ids of prompts that all small models know."""
_BLOCK_SIZE = 16
_FEW_BLOCKS, _FEW_TOKENS = 12, 48
"""Less than all requests need at once, and than the longest prompt has: some are preempted, some cut."""
_NATIVE, _SPEED = "native", "speed"
_MODULES = ("gpt_neox", "bloom")
"""A family that goes through transformers' attention interface, and one whose attention is replaced."""


@dataclass(frozen=True)
class Case:
    """What all steps are given."""

    folder: Path
    """Where checkpoints are."""
    device: str
    shape: str
    requests: int


def packages(case: Case) -> Details:
    """Import what the torch worker and the engine import."""
    missing = []
    for name in _REQUIRED:
        try:
            import_module(name)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    if missing:
        raise ModuleNotFoundError(f"not installed: {', '.join(missing)}; see --packages")
    for module in ("..engine", "..backends.torch.backend", ".compare.workloads"):
        import_module(module, __package__)
    details: Details = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        try:
            details[name] = version(name)
        except PackageNotFoundError:
            continue
    return details


def device(case: Case) -> Details:
    """Multiply something on the device, and see what torch knows of it."""
    import torch

    chosen = torch.device(case.device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU (made for CUDA {torch.version.cuda})")
    x = torch.arange(6.0, device=chosen).view(2, 3)
    found = (x @ x.T).cpu().tolist()
    if found != [[5.0, 14.0], [14.0, 50.0]]:
        raise RuntimeError(f"a product on {case.device} is {found}")
    if chosen.type != "cuda":
        return {"name": case.device}
    free, total = torch.cuda.mem_get_info(chosen)
    major, minor = torch.cuda.get_device_capability(chosen)
    return {
        "name": torch.cuda.get_device_name(chosen),
        "cuda": torch.version.cuda,
        "capability": f"{major}.{minor}",
        "bfloat16": torch.cuda.is_bf16_supported(),
        "free_bytes": free,
        "total_bytes": total,
    }


def checkpoints(case: Case) -> Details:
    """Write models of random weights: small ones in float32, and the one that speed is measured with."""
    import torch
    from transformers import AutoModelForCausalLM, BloomConfig, GPTNeoXConfig

    from .known_shapes import SHAPES
    from .random_checkpoint import write_checkpoint

    write_checkpoint(case.folder / _NATIVE, SHAPES["tiny"], dtype="float32")
    write_checkpoint(case.folder / _SPEED, SHAPES[case.shape], dtype="bfloat16")
    sizes: dict[str, Any] = {"vocab_size": _SMALL_VOCAB, "hidden_size": 64}
    configs = {
        "gpt_neox": GPTNeoXConfig(
            **sizes,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=256,
        ),
        "bloom": BloomConfig(**sizes, n_layer=2, n_head=4),
    }
    for name in _MODULES:
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        auto.from_config(configs[name]).save_pretrained(case.folder / name)
    return {"bytes": sum(file.stat().st_size for file in case.folder.rglob("*.safetensors"))}


def native_tokens(case: Case) -> Details:
    """Greedy tokens of the native decoder in float32, by the reference kernels, are generate's."""
    return _compare_tokens(case, [_NATIVE])


def module_tokens(case: Case) -> Details:
    """So are those of transformers' modules on the paged cache."""
    return _compare_tokens(case, _MODULES)


def engine_tokens(case: Case) -> Details:
    """So are those of the engine: all requests at once, in chunks, in too small a pool, and once more."""
    from .compare.runners.millstream_engine import load_server

    folder = case.folder / _NATIVE
    prompts = _prompts(_SMALL_VOCAB)
    requests = [Asked(prompt, _OUTPUT_LEN) for prompt in prompts]
    job = Job(
        model=str(folder),
        threads=1,
        in_flight=len(requests),
        max_length=max(_PROMPT_LENGTHS) + _OUTPUT_LEN,
        prefix_cache=True,
        shared_len=0,
        settings={
            "device": case.device,
            "dtype": "float32",
            "num_blocks": _FEW_BLOCKS,
            "max_num_batched_tokens": _FEW_TOKENS,
        },
        warmup=[],
        earlier=requests,
        requests=requests,
    )
    outcome = serve_job(job, load_server, [])
    found = [answer.token_ids for answer in outcome.answers]
    _require_equal(found, _generate(folder, case.device, prompts), folder.name)
    return {"requests": 2 * len(requests), "tokens": 2 * len(requests) * _OUTPUT_LEN}


def w2_generate(case: Case) -> Details:
    """One request, by transformers' generate."""
    return _measure(case, "w2", "transformers_static", {"dtype": "bfloat16", "batch_size": 64})


def w2_millstream(case: Case) -> Details:
    """One request, by the engine."""
    return _measure(case, "w2", "millstream_engine", {"dtype": "bfloat16"})


def w1_generate(case: Case) -> Details:
    """All requests at once, by transformers' generate in one batch."""
    return _measure(case, "w1", "transformers_static", {"dtype": "bfloat16", "batch_size": 64})


def w1_millstream(case: Case) -> Details:
    """All requests at once, by the engine."""
    return _measure(case, "w1", "millstream_engine", {"dtype": "bfloat16"})


def _measure(case: Case, name: str, runner: str, settings: dict[str, Setting]) -> Details:
    import torch

    from .compare.workloads import make_workloads
    from .known_shapes import SHAPES

    workload = make_workloads(SHAPES[case.shape].vocab_size)[name].first(case.requests)
    job = Job(
        model=str(case.folder / _SPEED),
        threads=torch.get_num_threads(),
        in_flight=min(workload.in_flight, len(workload.requests)),
        max_length=workload.max_length,
        prefix_cache=False,
        shared_len=0,
        settings={**settings, "device": case.device},
        warmup=workload.warmup[: len(workload.requests)],
        earlier=[],
        requests=workload.requests,
    )
    outcome = serve_job(job, import_module(f".compare.runners.{runner}", __package__).load_server, ["torch"])
    return _figures(job, outcome)


def _figures(job: Job, outcome: Outcome) -> Details:
    tokens = sum(len(asked.token_ids) + asked.output_len for asked in job.requests)
    return {
        "requests": len(job.requests),
        "tokens_per_second": tokens / outcome.wall_seconds,
        "first_token_seconds": sum(one.first - one.handed_over for one in outcome.answers)
        / len(outcome.answers),
        "load_seconds": outcome.load_seconds,
        "first_tokens": [answer.token_ids[0] for answer in outcome.answers],
    }


def _compare_tokens(case: Case, models: Sequence[str]) -> Details:
    import torch

    from ..backends.torch.backend import TorchBackend
    from ..backends.worker import WorkerConfig

    for model in models:
        folder = case.folder / model
        backend = TorchBackend()
        info = backend.inspect(model, folder)
        config = WorkerConfig(
            device=case.device,
            dtype="float32",
            max_length=128,
            max_num_seqs=1,
            max_num_batched_tokens=128,
            block_size=_BLOCK_SIZE,
            num_blocks=8,
            threads=torch.get_num_threads(),
        )
        worker = backend.load(info, config, lambda what, share: None)
        prompts = _prompts(_SMALL_VOCAB)
        found = [_greedy(worker, prompt) for prompt in prompts]
        worker.close()
        _require_equal(found, _generate(folder, case.device, prompts), model)
    return {"models": " and ".join(models), "tokens": len(models) * len(_PROMPT_LENGTHS) * _OUTPUT_LEN}


def _greedy(worker: "Worker", prompt: Sequence[int]) -> list[int]:
    """The prompt in two chunks, then a token a step, as the scheduler would ask for them."""
    from ..scheduler import SamplingParams
    from ..scheduler.batch import Batch, Chunk, SequenceStart, Wants

    start = SequenceStart(0, tuple(prompt), len(prompt), SamplingParams(temperature=0), seed=0)
    blocks = tuple(reversed(range(worker.spec.num_blocks)))
    tokens = list(prompt)
    cut = len(prompt) // 2
    if cut:
        first = Chunk(0, tuple(prompt[:cut]), 0, blocks, Wants.NOTHING)
        worker.execute(Batch((first,), (start,)))
    computed = cut
    for _ in range(_OUTPUT_LEN):
        chunk = Chunk(0, tuple(tokens[computed:]), computed, blocks, Wants.TOKEN)
        result = worker.execute(Batch((chunk,), () if computed else (start,)))
        computed = len(tokens)
        token = result.token_ids[0]
        if token is None:
            raise RuntimeError(f"no token at position {computed}: {result.errors}")
        tokens.append(token)
    worker.execute(Batch((), (), (0,)))
    return tokens[len(prompt) :]


def _prompts(vocab_size: int) -> list[list[int]]:
    return [
        [(101 + 7919 * (place + 1000 * number)) % vocab_size for place in range(length)]
        for number, length in enumerate(_PROMPT_LENGTHS)
    ]


def _generate(folder: Path, device: str, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy tokens of transformers' generate in float32, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    model.generation_config.eos_token_id = None
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_OUTPUT_LEN,
            pad_token_id=0,
        )
        found.append(output[0, len(prompt) :].tolist())
    return found


def _require_equal(found: Sequence[list[int]], expected: Sequence[list[int]], model: str) -> None:
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
            raise RuntimeError(
                f"{model}, prompt {number}: token {place} is {ours[place]}; generate gives {theirs[place]}"
            )


STEPS: dict[str, Callable[[Case], Details]] = {
    step.__name__: step
    for step in (
        *(packages, device, checkpoints, native_tokens, module_tokens, engine_tokens),
        *(w2_generate, w2_millstream, w1_generate, w1_millstream),
    )
}


def main(argv: Sequence[str]) -> int:
    """Run one step and write what it found out, or its traceback."""
    name, out, folder, device_name, shape, requests = argv
    details: Details = {}
    fault: list[str] = []
    try:
        details = STEPS[name](Case(Path(folder), device_name, shape, int(requests)))
    except Exception:  # whatever a step raises is its finding
        fault = traceback.format_exc().splitlines()
    Path(out).write_text(json.dumps({"details": details, "fault": fault}), encoding="utf-8")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
