"""NativeKernels, at every level of this machine, against formulas and against TorchKernels."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from millstream.backends.native import set_threads
from millstream.backends.torch.kernels.interface import Activation, AttentionSpec, KVCacheDtype, KVShape
from millstream.backends.torch.kernels.native_cache import NativePagedKV
from millstream.backends.torch.kernels.native_kernels import NativeKernels, make_kernels
from millstream.backends.torch.kernels.torch_kernels import TorchKernels, TorchPagedKV

from ..driver import LEVELS
from ..paged import CPU, Sequence, make_inputs, random_sequences, random_steps, run_steps, spoil

pytestmark = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built")
DTYPES = [torch.float32, torch.bfloat16]
KERNELS = {level: NativeKernels(level) for level in LEVELS}
REFERENCE = TorchKernels()

levels = st.sampled_from(LEVELS or ("none",))
dtypes = st.sampled_from(DTYPES)
kinds = st.sampled_from([KVCacheDtype.AUTO, *KVCacheDtype])
specs = st.builds(
    AttentionSpec,
    scale=st.sampled_from([0.1, 0.4]),
    window=st.sampled_from([None, None, 1, 7, 130, 200]),
    softcap=st.sampled_from([None, None, 3.0]),
)
lengths = st.lists(st.integers(1, 60) | st.integers(100, 300), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(
    level=levels,
    dtype=dtypes,
    kind=kinds,
    spec=specs,
    lengths=lengths,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dim=st.integers(1, 32).map(lambda n: 8 * n),
    block_size=st.sampled_from([16, 32, 64, 128]),
    most=st.integers(2, 70),
    seed=st.integers(0, 99),
)
def test_attention(
    level: str,
    dtype: torch.dtype,
    kind: KVCacheDtype,
    spec: AttentionSpec,
    lengths: list[int],
    kv_heads: int,
    group: int,
    dim: int,
    block_size: int,
    most: int,
    seed: int,
) -> None:
    run_steps(
        KERNELS[level],
        KVShape(kv_heads, dim, dim),
        kv_heads * group,
        AttentionSpec(spec.scale * 8 / math.sqrt(dim), spec.window, spec.softcap),
        lengths,
        block_size=block_size,
        most=most,
        seed=seed,
        dtype=dtype,
        kind=kind,
    )


def attend_all(
    kernels: NativeKernels,
    queries: list[Tensor],
    sequences: list[Sequence],
    count: int,
    spec: AttentionSpec,
    block_size: int,
    steps: list[list[tuple[int, int, int]]],
    kind: KVCacheDtype,
) -> list[Tensor]:
    """Attention of every query of every sequence, computed in these steps on an unclean cache."""
    _, kv_heads, dim = sequences[0].key.shape
    kv = kernels.allocate_kv([KVShape(kv_heads, dim, dim)], count, block_size, queries[0].dtype, CPU, kind)
    spoil(kv, math.nan)
    results = [torch.empty_like(query) for query in queries]
    for numbers in steps:
        parts = [(sequences[i], start, end) for i, start, end in numbers]
        inputs = make_inputs(parts, block_size)
        step = kv.step(inputs)
        step.write(
            0, torch.cat([s.key[a:b] for s, a, b in parts]), torch.cat([s.value[a:b] for s, a, b in parts])
        )
        found = step.attend(0, torch.cat([queries[i][a:b] for i, a, b in numbers]), spec)
        for chunk, (i, a, b) in zip(found.split([b - a for _, a, b in parts]), numbers, strict=True):
            results[i][a:b] = chunk
    return results


@settings(max_examples=40, deadline=None)
@given(
    level=levels,
    dtype=dtypes,
    kind=kinds,
    spec=specs,
    lengths=lengths,
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2), (4, 4), (24, 2)]),
    dim=st.sampled_from([8, 40, 64, 96]),
    most=st.integers(2, 150),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_attention_is_the_same_bits_alone_in_a_batch_in_chunks_and_on_any_number_of_threads(
    level: str,
    dtype: torch.dtype,
    kind: KVCacheDtype,
    spec: AttentionSpec,
    lengths: list[int],
    heads: tuple[int, int],
    dim: int,
    most: int,
    threads: int,
    seed: int,
) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    sequences, count = random_sequences(KVShape(heads[1], dim, dim), lengths, 16, dtype, chance)
    queries = [torch.randn(length, heads[0], dim).to(dtype) for length in lengths]
    kernels = KERNELS[level]
    alone = [[(i, 0, length)] for i, length in enumerate(lengths)]
    token_by_token = [[(i, p, p + 1)] for i, length in enumerate(lengths) for p in range(length)]
    mixed = list(random_steps(lengths, most, chance))
    expected = attend_all(kernels, queries, sequences, count, spec, 16, alone, kind)
    set_threads(threads)
    try:
        for steps in (alone, token_by_token, mixed):
            found = attend_all(kernels, queries, sequences, count, spec, 16, steps, kind)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    finally:
        set_threads(1)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_contexts_split_over_threads_give_the_same_bits(level: str, dtype: torch.dtype) -> None:
    shape = KVShape(1, 64, 64)
    kv = KERNELS[level].allocate_kv([shape], 300, 16, dtype, CPU)
    assert isinstance(kv, NativePagedKV)
    kv.blocks[0].view(dtype).normal_()
    sequence = Sequence(torch.empty(0), torch.empty(0), random.Random(2).sample(range(300), 300))
    query = torch.randn(9, 16, 64).to(dtype)
    spec = AttentionSpec(0.2)
    found = []
    try:
        for threads in (1, 2, 4):
            set_threads(threads)
            step = kv.step(make_inputs([(sequence, 4700, 4709)], 16))
            found.append(step.attend(0, query, spec))
        last = kv.step(make_inputs([(sequence, 4708, 4709)], 16)).attend(0, query[8:], spec)
    finally:
        set_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][8:], last)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KVCacheDtype)
def test_a_key_that_is_no_number_spoils_what_sees_it(level: str, kind: KVCacheDtype) -> None:
    kv = KERNELS[level].allocate_kv([KVShape(2, 32, 32)], 2, 16, torch.float32, CPU, kind)
    sequence = Sequence(torch.empty(0), torch.empty(0), [1, 0])
    step = kv.step(make_inputs([(sequence, 0, 20)], 16))
    key = torch.randn(20, 2, 32)
    key[13, 0, 5] = math.nan
    step.write(0, key, torch.randn(20, 2, 32))
    found = step.attend(0, torch.randn(20, 2, 32), AttentionSpec(0.2)).isnan()
    assert found[13:, 0].all()
    assert not found[:13].any()
    assert not found[:, 1].any()


@pytest.mark.parametrize("level", LEVELS)
def test_a_query_that_is_no_number_spoils_its_own_row_only(level: str) -> None:
    kv = KERNELS[level].allocate_kv([KVShape(1, 32, 32)], 2, 16, torch.float32, CPU)
    sequence = Sequence(torch.empty(0), torch.empty(0), [1, 0])
    step = kv.step(make_inputs([(sequence, 0, 20)], 16))
    step.write(0, torch.randn(20, 1, 32), torch.randn(20, 1, 32))
    query = torch.randn(20, 2, 32)
    clean = step.attend(0, query, AttentionSpec(0.2))
    query[7, 1, 3] = math.nan
    found = step.attend(0, query, AttentionSpec(0.2))
    assert found[7, 1].isnan().all()
    found[7, 1] = clean[7, 1]
    assert torch.equal(found, clean)


@settings(max_examples=40, deadline=None)
@given(
    level=levels,
    dtype=dtypes,
    tokens=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (6, 2), (7, 1)]),
    dim=st.sampled_from([8, 24, 64, 80, 128]),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_rotary_embedding_and_cache_write(
    level: str,
    dtype: torch.dtype,
    tokens: int,
    heads: tuple[int, int],
    dim: int,
    share: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = KVShape(heads[1], dim, dim)
    sequence = Sequence(torch.empty(0), torch.empty(0), [2, 0, 1])
    inputs = make_inputs([(sequence, 0, tokens)], 16)
    qkv = torch.randn(tokens, heads[0] + 2 * heads[1], dim).to(dtype)
    width = int(dim * share)
    cos, sin = torch.randn(tokens, width), torch.randn(tokens, width)
    results = []
    for kernels in (KERNELS[level], REFERENCE):
        step = kernels.allocate_kv([shape], 3, 16, dtype, CPU).step(inputs)
        turned = qkv.clone()
        step.rotate_write(0, turned, cos, sin)
        results.append((turned, step.attend(0, turned[:, : heads[0]], AttentionSpec(0.1))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **_tolerance(dtype))


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}


@settings(max_examples=40, deadline=None)
@given(levels, dtypes, st.integers(1, 20), st.integers(1, 300), st.integers(0, 99))
def test_norms(level: str, dtype: torch.dtype, rows: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    kernels = KERNELS[level]
    x, y, weight = torch.randn(rows, n).to(dtype), torch.randn(rows, n).to(dtype), torch.randn(n)
    found = kernels.rms_norm(x, weight, 1e-3)
    torch.testing.assert_close(found, REFERENCE.rms_norm(x, weight, 1e-3), **_tolerance(dtype))
    assert torch.equal(kernels.rms_norm(x[-1:], weight, 1e-3), found[-1:])
    residual = x.clone()
    added = kernels.add_rms_norm(residual, y, weight, 1e-3)
    assert torch.equal(residual, x + y)
    assert torch.equal(added, kernels.rms_norm(residual, weight, 1e-3))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_parts_of_a_tensor(level: str, dtype: torch.dtype) -> None:
    kernels = KERNELS[level]
    whole, weight = torch.randn(5, 9, 24).to(dtype), torch.randn(24)
    part = whole[:, 2:6]
    expected = torch.stack([kernels.rms_norm(part[i].contiguous(), weight, 1e-5) for i in range(5)])
    assert torch.equal(kernels.rms_norm(part, weight, 1e-5), expected)
    before = whole.clone()
    kernels.rms_norm_(part, weight, 1e-5)
    before[:, 2:6] = expected
    assert torch.equal(whole, before)
    wide = torch.randn(96)
    expected = kernels.rms_norm(part.flatten(1), wide, 1e-5)
    flat = whole.flatten(1)[:, 48:144]
    kernels.rms_norm_(flat, wide, 1e-5)
    assert torch.equal(flat, expected)
    four = torch.randn(2, 3, 4, 24).to(dtype)
    torch.testing.assert_close(
        kernels.rms_norm(four, weight, 1e-5), REFERENCE.rms_norm(four, weight, 1e-5), **_tolerance(dtype)
    )


@settings(max_examples=40, deadline=None)
@given(
    levels,
    dtypes,
    st.sampled_from(list(Activation)),
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(0, 99),
)
def test_gated_activations(
    level: str, dtype: torch.dtype, activation: Activation, rows: int, n: int, seed: int
) -> None:
    torch.manual_seed(seed)
    gate_up = (4 * torch.randn(rows, 2 * n)).to(dtype)
    gate_up[0, 0] = -200
    found = KERNELS[level].gated_activation(gate_up, activation)
    expected = REFERENCE.gated_activation(gate_up.float(), activation)
    torch.testing.assert_close(found.float(), expected, **_tolerance(dtype))
    assert torch.equal(KERNELS[level].gated_activation(gate_up[-1:], activation), found[-1:])
    gate_up[0, 0] = math.nan
    assert KERNELS[level].gated_activation(gate_up, activation)[0, 0].isnan()


@settings(max_examples=40, deadline=None)
@given(levels, dtypes, st.integers(1, 20), st.integers(1, 300), st.integers(0, 99))
def test_rows_as_int8(level: str, dtype: torch.dtype, rows: int, n: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, n + 3).to(dtype)[:, :n]
    x[0] = 0
    found, scales = KERNELS[level].quantise_rows(x)
    expected, expected_scales = REFERENCE.quantise_rows(x)
    assert torch.equal(found, expected)
    assert torch.equal(scales, expected_scales)
    assert ((found.float() * scales[:, None] - x.float()).abs() <= scales[:, None] * 0.501).all()


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KVCacheDtype)
def test_bytes_of_a_block_are_those_of_the_tensors(
    block_size: int, dtype: torch.dtype, kind: KVCacheDtype
) -> None:
    shapes = [KVShape(2, 64, 64), KVShape(1, 40, 40)]
    kernels = KERNELS[LEVELS[0]]
    kv = kernels.allocate_kv(shapes, 9, block_size, dtype, CPU, kind)
    assert isinstance(kv, NativePagedKV)
    held = sum(blocks.nbytes for blocks in kv.blocks)
    assert kernels.kv_bytes_per_block(shapes, block_size, dtype, kind) * 9 == held


@pytest.mark.parametrize(
    ("shape", "block_size", "dtype"),
    [
        (KVShape(1, 12, 8), 16, torch.float32),
        (KVShape(1, 12, 12), 16, torch.float32),
        (KVShape(1, 520, 520), 16, torch.float32),
        (KVShape(1, 64, 64), 8, torch.float32),
        (KVShape(1, 64, 64), 16, torch.float16),
    ],
)
def test_other_shapes_go_to_the_reference(shape: KVShape, block_size: int, dtype: torch.dtype) -> None:
    kernels = KERNELS[LEVELS[0]]
    kv = kernels.allocate_kv([shape, KVShape(1, 64, 64)], 4, block_size, dtype, CPU)
    assert isinstance(kv, TorchPagedKV)
    shapes = [shape, KVShape(1, 64, 64)]
    assert kernels.kv_bytes_per_block(shapes, block_size, dtype) == REFERENCE.kv_bytes_per_block(
        shapes, block_size, dtype
    )


@pytest.mark.parametrize(("kind", "share"), [(KVCacheDtype.INT8, 0.55), (KVCacheDtype.UINT4, 0.3)])
def test_codes_take_about_a_half_and_a_quarter(kind: KVCacheDtype, share: float) -> None:
    shapes = [KVShape(2, 64, 64)]
    for kernels in (KERNELS[LEVELS[0]], REFERENCE):
        plain = kernels.kv_bytes_per_block(shapes, 16, torch.bfloat16)
        assert kernels.kv_bytes_per_block(shapes, 16, torch.bfloat16, kind) < share * plain


def test_float16_rows_go_to_the_reference() -> None:
    kernels = KERNELS[LEVELS[0]]
    x, weight = torch.randn(3, 32).half(), torch.randn(32)
    assert torch.equal(kernels.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    assert torch.equal(
        kernels.gated_activation(x, Activation.SILU), REFERENCE.gated_activation(x, Activation.SILU)
    )


def test_a_cpu_gets_the_fastest_level() -> None:
    kernels = make_kernels(CPU)
    assert isinstance(kernels, NativeKernels)
    assert kernels.level == LEVELS[0]
    assert isinstance(make_kernels(torch.device("cuda")), TorchKernels)
