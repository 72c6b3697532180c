"""Integer products are exact at every level, whatever the shape, and a row's result is its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from millstream.backends.native import Missing, levels, load
from millstream.backends.native.linear import (
    GROUP,
    PANEL,
    PLAIN,
    NativeLinear,
    PackedWeights,
    pack,
    packed_bytes,
)

FOUND = levels()
LEVELS = () if isinstance(FOUND, Missing) else FOUND
BITS = (8, 4)
pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built here")


def unpack(weights: PackedWeights) -> tuple[Tensor, Tensor]:
    """Integer weights [outputs, inputs] of a plain layer, multipliers applied, and their scales."""
    groups = -(-weights.inputs // GROUP)
    panels = weights.scales.shape[0] // PANEL
    if weights.bits == 8:
        stored = weights.packed.view(panels, groups * GROUP // 4, PANEL, 4).to(torch.int64) - 128
        whole = stored.permute(0, 2, 1, 3).reshape(panels * PANEL, -1)
    else:
        bytes_ = weights.packed.view(panels, groups, GROUP // 2 * PANEL + PANEL)
        values, multipliers = bytes_.split([GROUP // 2 * PANEL, PANEL], dim=2)
        pairs = values.reshape(panels, groups, GROUP // 8, PANEL, 4)
        both = torch.stack((pairs & 15, pairs >> 4), dim=3).to(torch.int64) - 8
        grouped = both.permute(0, 4, 1, 2, 3, 5).reshape(panels, PANEL, groups, GROUP)
        factors = multipliers.contiguous().view(torch.int8).to(torch.int64).permute(0, 2, 1)
        whole = (grouped * factors[..., None]).reshape(panels * PANEL, -1)
    return whole[: weights.outputs, : weights.inputs], weights.scales[: weights.outputs]


def reference(x: Tensor, weights: PackedWeights, bias: Tensor | None) -> Tensor:
    """The layer in numpy's and Python's own integers."""
    integers, scales = unpack(weights)
    values = x.float().numpy()
    top = np.abs(values).max(axis=1)
    factor = np.where(top > 1e-30, np.float32(127) / np.where(top > 0, top, np.float32(1)), np.float32(0))
    quantised = np.rint(values * factor[:, None].astype(np.float32)).astype(np.int64)
    sums = quantised @ integers.numpy().T
    assert np.abs(sums).max(initial=0) < 2**31
    y = sums.astype(np.float32) * scales.numpy() * (top / np.float32(127))[:, None]
    return torch.from_numpy(y if bias is None else y + bias.float().numpy())


def random_layer(
    rows: int, inputs: int, seed: int, *, extreme: bool = False
) -> tuple[Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    if extreme:
        weight = weight.sign()  # all integers at the ends of their range
    bias = torch.randn(rows, generator=generator)
    return weight, bias, generator


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 200),
    bits=st.sampled_from(BITS),
    from_bfloat16=st.booleans(),
    extreme=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_are_exact_at_every_level(
    rows: int,
    inputs: int,
    outputs: int,
    bits: int,
    from_bfloat16: bool,
    extreme: bool,
    with_bias: bool,
    seed: int,
) -> None:
    weight, bias, generator = random_layer(outputs, inputs, seed, extreme=extreme)
    x = torch.randn(rows, inputs, generator=generator)
    x[0] = 0
    if extreme:
        x = x.sign()
    if from_bfloat16:
        x, weight = x.bfloat16(), weight.bfloat16()
    own_bias = bias if with_bias else None
    for level in LEVELS:
        weights = pack(level, bits, weight, own_bias, PLAIN)
        y = NativeLinear(level, weights, torch.float32)(x)
        assert torch.equal(y, reference(x, weights, own_bias)), level
        rounded = NativeLinear(level, weights, torch.bfloat16)(x)
        assert torch.equal(rounded, y.bfloat16()), level


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("inputs", [4864, 16384])
def test_long_sums_at_the_ends_of_the_range(bits: int, inputs: int) -> None:
    weight = -torch.ones(3, inputs)
    x = torch.stack((torch.ones(inputs), -torch.ones(inputs)))
    for level in LEVELS:
        weights = pack(level, bits, weight, None, PLAIN)
        y = NativeLinear(level, weights, torch.float32)(x)
        assert torch.equal(y, reference(x, weights, None)), level
        assert y[0, 0] == pytest.approx(-inputs, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [PLAIN, 1])
def test_a_row_is_the_same_alone_and_in_any_batch(bits: int, level: str, kind: int) -> None:
    weight, bias, generator = random_layer(150, 200, 1)
    layer = NativeLinear(level, pack(level, bits, weight, bias, kind), torch.bfloat16)
    x = torch.randn(300, 200, generator=generator).bfloat16()
    whole = layer(x)
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(alone, whole)
    for count in range(1, 300, 1 if level == LEVELS[0] else 37):
        assert torch.equal(layer(x[:count]), whole[:count])
        assert torch.equal(layer(x[300 - count :]), whole[300 - count :])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("half", [32, 45, 130])
def test_gated_layers(bits: int, kind: int, half: int) -> None:
    weight, bias, generator = random_layer(2 * half, 96, 3)
    x = torch.randn(9, 96, generator=generator)
    activation = {
        1: torch.nn.functional.silu,
        2: torch.nn.functional.gelu,
        3: lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
    }[kind]
    for level in LEVELS:
        plain = NativeLinear(level, pack(level, bits, weight, bias, PLAIN), torch.float32)(x)
        gate, up = plain.chunk(2, dim=1)
        gated = NativeLinear(level, pack(level, bits, weight, bias, kind), torch.float32)(x)
        # In double precision, as torch's gelu rounds otherwise at its lowest level. An activation near 0 is
        # the gate times a small difference of large numbers, so errors count against the gate.
        expected = activation(gate.double()) * up.double()
        bound = 2e-6 + 4e-7 * (gate * up).abs()
        assert ((gated - expected).abs() <= bound).all(), ((gated - expected).abs() / bound).max()


@pytest.mark.parametrize(("bits", "error"), [(8, 0.012), (4, 0.11)])
def test_weights_stay_near(bits: int, error: float) -> None:
    weight, _, _ = random_layer(96, 512, 4)
    weight[5] *= 1e-3
    weight[6, 7] = 60.0  # an outlier in one group of a channel
    weight[7] = 0
    integers, scales = unpack(pack(LEVELS[0], bits, weight, None, PLAIN))
    found = integers * scales[:, None]
    off = (found - weight).norm(dim=1) / weight.norm(dim=1).clamp_min(1e-9)
    limit = torch.full((96,), error)
    limit[6] = 0.12 if bits == 4 else 0.06
    assert (off < limit).all(), off


@pytest.mark.parametrize("bits", BITS)
def test_every_level_packs_alike(bits: int) -> None:
    weight, _, _ = random_layer(70, 130, 5)
    packed = [pack(level, bits, weight, None, PLAIN) for level in LEVELS]
    for other in packed[1:]:
        assert torch.equal(other.packed, packed[0].packed)
        assert torch.equal(other.scales, packed[0].scales)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_spoils_itself_only(bits: int, bad: float) -> None:
    weight, _, generator = random_layer(64, 64, 6)
    x = torch.randn(3, 64, generator=generator)
    for level in LEVELS:
        layer = NativeLinear(level, pack(level, bits, weight, None, PLAIN), torch.float32)
        good = layer(x)
        spoilt = x.clone()
        spoilt[1, 9] = bad
        y = layer(spoilt)
        assert y[1].isnan().all()
        assert torch.equal(y[::2], good[::2])


BF16_LEVELS = [level for level in LEVELS if level == "avx512"]
"""Levels that have bfloat16 layers, be they the fastest or not."""


@pytest.mark.parametrize("level", BF16_LEVELS)
@pytest.mark.parametrize("kind", [PLAIN, 1, 2, 3])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 2), (150, 200), (3, 898)])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_layers(level: str, kind: int, outputs: int, inputs: int, out_dtype: torch.dtype) -> None:
    rows = outputs if kind == PLAIN else 2 * outputs
    weight, bias, generator = random_layer(rows, inputs, 9)
    weight /= inputs**0.5
    x = torch.randn(300, inputs, generator=generator).bfloat16()
    weights = pack(level, 16, weight.bfloat16(), bias, kind)
    assert weights.bits == (16 if inputs == 2 else 12)
    layer = NativeLinear(level, weights, out_dtype)
    y = layer(x)
    assert torch.equal(y, NativeLinear(level, as_it_is(level, weight.bfloat16(), bias, kind), out_dtype)(x))
    exact = x.double() @ weight.bfloat16().double().t() + bias.double()
    if kind != PLAIN:
        gate, up = exact.chunk(2, dim=1)
        gated = {
            1: torch.nn.functional.silu,
            2: torch.nn.functional.gelu,
            3: lambda g: torch.nn.functional.gelu(g, approximate="tanh"),
        }[kind]
        exact = gated(gate) * up
    tolerance = 1e-5 if out_dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
    for count in (1, 2, 5, 6, 7, 12, 13, 64, 129, 299):
        assert torch.equal(layer(x[:count]), y[:count])
        assert torch.equal(layer(x[300 - count :]), y[300 - count :])
    assert weights.bias is not None
    found = weights.packed.nbytes + weights.scales.nbytes + weights.bias.nbytes
    assert found <= packed_bytes(16, rows, inputs, gated=kind != PLAIN, bias=True)


def as_it_is(level: str, weight: Tensor, bias: Tensor | None, kind: int) -> PackedWeights:
    """A bfloat16 weight in 16 bits, whether or not 12 would do."""
    other = pack(level, 16, weight, bias, kind)
    rows, inputs = weight.shape
    gated = kind != PLAIN
    panels = packed_bytes(16, rows, inputs, gated=gated, bias=False)
    packed = torch.zeros(panels, dtype=torch.uint8)
    load(level).pack_bf16(weight.data_ptr(), rows, inputs, int(gated), packed.data_ptr())
    return replace(other, packed=packed, bits=16)


@pytest.mark.parametrize("level", BF16_LEVELS)
@pytest.mark.parametrize("inputs", [48, 1056, 4864])
@pytest.mark.parametrize("spread", ["zeros", "few tiny", "specials", "too many exponents"])
def test_twelve_bits_lose_nothing(level: str, inputs: int, spread: str) -> None:
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(130, inputs, generator=generator) * 0.02
    chosen = torch.rand(weight.shape, generator=generator)
    if spread == "zeros":
        weight[chosen < 0.3] = 0.0
        weight[chosen > 0.9] = -0.0
    elif spread == "few tiny":
        weight[chosen < 0.002] *= 1e-20
    elif spread == "specials":
        weight[3, 5], weight[64, 16], weight[129, inputs - 1] = float("inf"), float("nan"), 1e-40
    else:
        weight *= torch.exp2(torch.randint(-60, 60, weight.shape, generator=generator).float())
    weight = weight.bfloat16()
    weights = pack(level, 16, weight, None, PLAIN)
    assert weights.bits == (16 if spread == "too many exponents" else 12)
    found, exact = (
        NativeLinear(level, packed, torch.float32)
        for packed in (weights, as_it_is(level, weight, None, PLAIN))
    )
    for rows in (1, 6, 7, 40):
        x = torch.randn(rows, inputs, generator=generator).bfloat16()
        assert torch.equal(found(x).view(torch.int32), exact(x).view(torch.int32))
    if spread in ("zeros", "few tiny"):  # each input alone, so that no weight hides behind another one
        alone = torch.eye(inputs).bfloat16()
        assert torch.equal(found(alone), weight.t().float())


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_a_larger_tensor(bits: int) -> None:
    weight, _, generator = random_layer(64, 50, 7)
    wide = torch.randn(4, 90, generator=generator)
    layer = NativeLinear(LEVELS[0], pack(LEVELS[0], bits, weight, None, PLAIN), torch.float32)
    assert torch.equal(layer(wide[:, :50]), layer(wide[:, :50].contiguous()))
    assert torch.equal(layer(wide.t()[:50].t()), layer(wide[:, :50].contiguous()))
    assert layer(wide[:0, :50]).shape == (0, 64)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", [PLAIN, 1])
@pytest.mark.parametrize("shape", [(2, 1), (130, 70), (128, 64)])
def test_bytes_are_known_before_packing(bits: int, kind: int, shape: tuple[int, int]) -> None:
    weight, bias, _ = random_layer(*shape, 8)
    weights = pack(LEVELS[0], bits, weight, bias, kind)
    assert weights.bias is not None
    found = weights.packed.nbytes + weights.scales.nbytes + weights.bias.nbytes
    assert found == packed_bytes(bits, *shape, gated=kind != PLAIN, bias=True)
