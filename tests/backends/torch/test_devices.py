"""A step computes where the model is: nothing of it is left on the host.

The device without memory stands for every other one than the CPU: most operators refuse tensors of two.
"""

from pathlib import Path

import pytest
import torch

from millstream.backends.torch.batching import StepBuilder
from millstream.backends.torch.decoder.config import decoder_config, read_config
from millstream.backends.torch.decoder.decoder import NativeDecoder
from millstream.backends.torch.decoder.weights import DecoderWeights
from millstream.backends.torch.kernels.interface import AttentionSpec, KVCacheDtype, KVShape
from millstream.backends.torch.kernels.native_kernels import make_kernels
from millstream.backends.torch.kernels.torch_kernels import TorchKernels
from millstream.benchmarks.known_shapes import SHAPES
from millstream.benchmarks.random_checkpoint import write_checkpoint
from millstream.scheduler.batch import Chunk, Wants

ELSEWHERE = torch.device("meta")
BLOCK_SIZE = 16
LONG, SHORT = (0, 1), (2,)
"""Blocks of two sequences."""
STEPS = (
    # Both begin; then the first one is decoded while the other goes on.
    ([Chunk(0, tuple(range(20)), 0, LONG, Wants.TOKEN), Chunk(1, (3,), 0, SHORT, Wants.TOKEN)], [19, 20], []),
    ([Chunk(0, (1,), 20, LONG, Wants.TOKEN), Chunk(1, (3, 4, 5), 1, SHORT, Wants.TOKEN)], [0, 3], [1]),
)
"""Chunks, rows whose logits are wanted, and rows whose hidden states are."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_checkpoint(made, SHAPES["tiny"])
    return made


@pytest.mark.parametrize("kind", list(KVCacheDtype))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_native_decoder(folder: Path, dtype: torch.dtype, kind: KVCacheDtype) -> None:
    config = decoder_config(read_config(folder), 64, has_head=True)
    kernels = make_kernels(ELSEWHERE)
    assert isinstance(kernels, TorchKernels)
    kv = kernels.allocate_kv(config.kv_shapes, 4, BLOCK_SIZE, dtype, ELSEWHERE, kind)
    decoder = NativeDecoder(DecoderWeights(folder, config, dtype, ELSEWHERE, lambda share: None), kernels, kv)
    builder = StepBuilder(2, 64, BLOCK_SIZE, ELSEWHERE)
    for chunks, rows, state_rows in STEPS:
        outputs = decoder.forward(builder.build(chunks, rows, state_rows))
        assert outputs.logits.shape == (len(rows), config.vocab_size)
        assert (outputs.logits.device, outputs.logits.dtype) == (ELSEWHERE, torch.float32)
        assert outputs.states.device == ELSEWHERE


@pytest.mark.parametrize(
    "spec", [AttentionSpec(0.5), AttentionSpec(0.5, window=7), AttentionSpec(0.5, window=7, softcap=30.0)]
)
def test_attention_of_every_kind(spec: AttentionSpec) -> None:
    shape = KVShape(num_kv_heads=2, key_dim=8, value_dim=4)
    kv = TorchKernels().allocate_kv([shape], 4, BLOCK_SIZE, torch.float16, ELSEWHERE)
    builder = StepBuilder(2, 64, BLOCK_SIZE, ELSEWHERE)
    for chunks, rows, state_rows in STEPS:
        inputs = builder.build(chunks, rows, state_rows)
        step = kv.step(inputs)
        tokens = len(inputs.positions)
        new = torch.empty(tokens, 2, 8, dtype=torch.float16, device=ELSEWHERE)
        step.write(0, new, new[..., :4])
        query = torch.empty(tokens, 6, 8, dtype=torch.float16, device=ELSEWHERE)
        attended = step.attend(0, query, spec)
        assert (attended.shape, attended.device) == ((tokens, 6, 4), ELSEWHERE)
