"""TorchKernels against formulas written out position by position."""

import math
import random

import pytest
import torch
from torch import Tensor

from millstream.backends.torch.decoder.rope import Rope, RotaryTable
from millstream.backends.torch.kernels import attention_plan, torch_kernels
from millstream.backends.torch.kernels.interface import Activation, AttentionSpec, KVCacheDtype, KVShape
from millstream.backends.torch.kernels.kv_codes import encode
from millstream.backends.torch.kernels.torch_kernels import TorchKernels, TorchPagedKV

from ..paged import CPU, Sequence, make_inputs, naive_attention, run_steps

KERNELS = TorchKernels()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("window", [None, 1, 5, 16])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_attention(
    heads: int, kv_heads: int, window: int | None, softcap: float | None, block_size: int
) -> None:
    spec = AttentionSpec(scale=0.6, window=window, softcap=softcap)
    run_steps(KERNELS, KVShape(kv_heads, 8, 8), heads, spec, [1, 23, 40, 9], block_size=block_size, most=13)


@pytest.mark.parametrize(("key_dim", "value_dim"), [(12, 8), (8, 12)])
def test_attention_with_values_of_another_width(key_dim: int, value_dim: int) -> None:
    spec = AttentionSpec(scale=0.3)
    run_steps(KERNELS, KVShape(2, key_dim, value_dim), 4, spec, [17, 20], block_size=4, most=9)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_attention_over_many_groups_and_pieces(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_plan, "TILE_ROWS", 16)
    monkeypatch.setattr(torch_kernels, "GROUP_BYTES", 12 * 4 * 4 * 8 * 4)
    monkeypatch.setattr(torch_kernels, "MAX_SCORES", 512)
    spec = AttentionSpec(scale=0.6, window=window, softcap=softcap)
    run_steps(KERNELS, KVShape(2, 8, 8), 4, spec, [90, 70, 7, 66, 30, 31], block_size=4, most=60)


@pytest.mark.parametrize("kind", [KVCacheDtype.INT8, KVCacheDtype.UINT4])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(8, 8), (5, 3)])
def test_attention_over_codes(kind: KVCacheDtype, key_dim: int, value_dim: int) -> None:
    shape = KVShape(2, key_dim, value_dim)
    run_steps(KERNELS, shape, 4, AttentionSpec(0.6), [1, 23, 40, 9], block_size=4, most=13, kind=kind)


@pytest.mark.parametrize(("kind", "most"), [(KVCacheDtype.INT8, 1 / 254), (KVCacheDtype.UINT4, 1 / 30)])
def test_codes_are_the_nearest_ones(kind: KVCacheDtype, most: float) -> None:
    x = torch.randn(50, 64)
    x[0], x[1], x[2] = 0, x[1].abs(), -x[2].abs()
    codes, scale, zero = encode(x, kind)
    reach = x.abs().amax(-1) if kind is KVCacheDtype.INT8 else x.amax(-1).clamp(0) - x.amin(-1).clamp(max=0)
    error = ((codes - zero[:, None]) * scale[:, None] - x).abs().amax(-1)
    # A zero that is rounded may cost the largest or the smallest number another half step.
    assert (error <= reach * most * (1.001 if kind is KVCacheDtype.INT8 else 2.001)).all()
    x[3, 4] = torch.inf
    assert encode(x, kind)[1].isnan().tolist() == [i == 3 for i in range(50)]


def test_every_decode_slice_is_in_exactly_one_group_of_bounded_padding() -> None:
    chance = random.Random(3)
    sequences = [Sequence(torch.empty(0), torch.empty(0), [0] * 200) for _ in range(50)]
    lengths = [chance.choice([1, 40, 700, 3000]) + chance.randrange(99) for _ in sequences]
    inputs = make_inputs([(s, n - 1, n) for s, n in zip(sequences, lengths, strict=True)], 16)
    plan = attention_plan.plan_attention(
        inputs,
        window=None,
        causal_kernel=True,
        block_size=16,
        head_offsets=torch.arange(2) * 300,
        spare_block=299,
        group_blocks=600,
        dtype=torch.float32,
    )
    assert not plan.tiles
    assert sorted(row for group in plan.decodes for row in group.rows.tolist()) == list(range(50))
    for group in plan.decodes:
        blocks = group.index.numel() // 2
        assert blocks <= 600
        used = sum(-(-lengths[row] // 16) for row in group.rows.tolist())
        assert blocks - used <= len(group.rows) * max(attention_plan.PADDING, blocks // len(group.rows) // 4)


@pytest.mark.parametrize("width", [4, 8])
def test_rotary_embedding_turns_pairs_of_the_two_halves(width: int) -> None:
    shape = KVShape(1, 8, 8)
    kv = TorchKernels().allocate_kv([shape], 2, 4, torch.float32, CPU)
    rope = Rope(tuple(0.3 * (i + 1) for i in range(width // 2)), magnitude=1.25)
    sequence = Sequence(torch.empty(0), torch.empty(0), [1, 0])
    inputs = make_inputs([(sequence, 0, 5)], 4)
    qkv = torch.randn(5, 4, 8)
    before = qkv.clone()
    step = kv.step(inputs)
    step.rotate_write(0, qkv, *RotaryTable(rope, CPU).at(inputs.positions))
    for position in range(5):
        for head in range(3):
            row = before[position, head]
            for i in range(width // 2):
                turned = complex(row[i], row[i + width // 2]) * 1.25
                turned *= complex(math.cos(0.3 * (i + 1) * position), math.sin(0.3 * (i + 1) * position))
                found = complex(qkv[position, head, i], qkv[position, head, i + width // 2])
                assert found == pytest.approx(turned, abs=1e-5)
            assert torch.equal(qkv[position, head, width:], row[width:])
    assert torch.equal(qkv[:, 3], before[:, 3]), "values are not turned"
    found = step.attend(0, qkv[:, :2], AttentionSpec(1.0))
    whole = Sequence(qkv[:, 2:3], qkv[:, 3:4], [])
    torch.testing.assert_close(found, naive_attention(qkv[:, :2], whole, 0, AttentionSpec(1.0)).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(dtype: torch.dtype) -> None:
    kernels = TorchKernels()
    x, y, weight = torch.randn(5, 48).to(dtype), torch.randn(5, 48).to(dtype), torch.randn(48)

    def norm(t: Tensor) -> Tensor:
        return (t.double() / (t.double().square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight).to(dtype)

    before = x.clone()
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-3), norm(x))
    assert torch.equal(x, before)
    torch.testing.assert_close(kernels.add_rms_norm(x, y, weight, 1e-3), norm(before + y))
    assert torch.equal(x, before + y)


@pytest.mark.parametrize("activation", Activation)
def test_gated_activations(activation: Activation) -> None:
    x = torch.randn(5, 48)
    gate, up = x[:, :24], x[:, 24:]
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    expected = {
        Activation.SILU: gate / (1 + torch.exp(-gate)),
        Activation.GELU: gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))),
        Activation.GELU_TANH: 0.5 * gate * (1 + tanh),
    }[activation]
    torch.testing.assert_close(TorchKernels().gated_activation(x, activation), expected * up)


def test_bytes_of_a_block_are_those_of_the_tensors() -> None:
    shapes = [KVShape(2, 8, 8), KVShape(1, 12, 8)]
    kernels = TorchKernels()
    kv = kernels.allocate_kv(shapes, 9, 4, torch.bfloat16, CPU)
    assert isinstance(kv, TorchPagedKV)
    held = sum(blocks.nbytes for blocks in kv.blocks)
    assert kernels.kv_bytes_per_block(shapes, 4, torch.bfloat16) * 10 == held
    for kind in (KVCacheDtype.INT8, KVCacheDtype.UINT4):
        codes = kernels.allocate_kv(shapes, 9, 4, torch.bfloat16, CPU, kind).codes
        held = sum(t.nbytes for each in codes for t in (each.codes, each.scales, each.zeros))
        assert kernels.kv_bytes_per_block(shapes, 4, torch.bfloat16, kind) * 10 == held
