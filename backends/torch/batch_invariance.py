"""Whether the torch worker's results are the same in every batch, bit for bit."""

from collections.abc import Sequence

import torch

from ...errors import NotSupported
from ..native import Missing, best_level
from ..worker import WorkerConfig
from .decoder.linear import panel_level
from .kernels.interface import KVShape
from .kernels.native_cache import attends_natively


def require_batch_invariance(
    config: WorkerConfig, name: str, inputs: Sequence[int] | None, shapes: Sequence[KVShape]
) -> None:
    """Raise NotSupported, naming the reason, where it is asked for and does not hold.

    It holds where C++ kernels of our own compute all products and attention: in integers, or in bfloat16 on
    CPUs where theirs are the fastest. Others' products sum a row in an order that depends on their number.

    Args:
        inputs: of all layers; None where the native decoder does not run the model.
    """
    if not config.batch_invariant:
        return
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    level = best_level()
    reason = None
    if device.type != "cpu":
        reason = f"products on {device} depend on the batch"
    elif inputs is None:
        reason = "transformers' modules compute it, whose products depend on the batch"
    elif isinstance(level, Missing):
        reason = f"it needs the native kernels, which are {level.reason}"
    elif not attends_natively(shapes, config.block_size, dtype):
        reason = f"the native kernels do not attend in {config.dtype} over blocks of {config.block_size}"
    elif config.quantization == "none" and any(panel_level(dtype, device, n) is None for n in inputs):
        reason = f"torch's products in {config.dtype} are used on this CPU, and depend on the batch"
    if reason is not None:
        raise NotSupported(
            f"batch_invariant is True, and {name} cannot hold it: {reason}; where the native decoder runs a "
            "model it holds with quantization='int8' or 'int4', and in bfloat16 on CPUs with AVX-512 and "
            "without AMX"
        )
