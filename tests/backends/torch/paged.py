"""Sequences in a paged cache, brought to their lengths in chunks of any kind."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from millstream.backends.torch.kernels.interface import AttentionSpec, Kernels, KVCacheDtype, KVShape, PagedKV
from millstream.backends.torch.kernels.kv_codes import encode
from millstream.backends.torch.kernels.step_inputs import StepInputs

CPU = torch.device("cpu")


@dataclass
class Sequence:
    """Keys and values [length, kv heads, dim] of one sequence, and its table."""

    key: Tensor
    value: Tensor
    table: list[int]


def make_inputs(parts: list[tuple[Sequence, int, int]], block_size: int) -> StepInputs:
    """A step of chunks (sequence, start, end)."""
    starts = [0]
    positions: list[int] = []
    slots: list[int] = []
    for sequence, start, end in parts:
        positions += range(start, end)
        slots += [sequence.table[p // block_size] * block_size + p % block_size for p in range(start, end)]
        starts.append(len(positions))
    width = max(len(sequence.table) for sequence, _, _ in parts)
    tables = [sequence.table + [0] * (width - len(sequence.table)) for sequence, _, _ in parts]
    return StepInputs(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_starts=tuple(starts),
        context_lengths=tuple(end for _, _, end in parts),
        block_tables=torch.tensor(tables),
        logit_rows=torch.zeros(0, dtype=torch.int64),
        state_rows=torch.zeros(0, dtype=torch.int64),
        sequence_ids=tuple(range(len(parts))),
    )


def naive_attention(query: Tensor, sequence: Sequence, start: int, spec: AttentionSpec) -> Tensor:
    """[n, heads, value dim] in float64: one head at a time, over all positions and with a mask."""
    end = start + query.shape[0]
    group = query.shape[1] // sequence.key.shape[1]
    rows, columns = torch.arange(start, end)[:, None], torch.arange(end)
    hidden = columns > rows
    if spec.window is not None:
        hidden |= columns <= rows - spec.window
    heads = []
    for h in range(query.shape[1]):
        key, value = sequence.key[:end, h // group].double(), sequence.value[:end, h // group].double()
        scores = query[:, h].double() @ key.T * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        heads.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value)
    return torch.stack(heads, 1)


def random_sequences(
    shape: KVShape, lengths: list[int], block_size: int, dtype: torch.dtype, chance: random.Random
) -> tuple[list[Sequence], int]:
    """Sequences of these lengths on blocks in random order, and the number of blocks they need."""
    count = sum(-(-length // block_size) for length in lengths) + 3
    ids = list(range(count))
    chance.shuffle(ids)
    sequences = [
        Sequence(
            torch.randn(length, shape.num_kv_heads, shape.key_dim).to(dtype),
            torch.randn(length, shape.num_kv_heads, shape.value_dim).to(dtype),
            [ids.pop() for _ in range(-(-length // block_size))],
        )
        for length in lengths
    ]
    return sequences, count


def random_steps(
    lengths: list[int], most: int, chance: random.Random
) -> Iterator[list[tuple[int, int, int]]]:
    """Steps of chunks (sequence, start, end) that bring sequences to their lengths."""
    done = [0] * len(lengths)
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        parts = []
        for i, length in enumerate(lengths):
            take = min(chance.choice([0, 1, 1, most]), length - done[i])
            if take:
                parts.append((i, done[i], done[i] + take))
                done[i] += take
        if parts:
            yield parts


def spoil(kv: PagedKV, stale: float) -> None:
    """Fill all blocks with what a former owner might have left there."""
    for codes in getattr(kv, "codes", ()):
        codes.scales[:, :-1] = stale
    for blocks in kv.blocks:
        if blocks.dtype == torch.int32:
            blocks.fill_(torch.tensor([stale, stale]).bfloat16().view(torch.int32).item())
        else:
            blocks[:, :-1] = stale


def _round_trip(x: Tensor, kind: KVCacheDtype) -> Tensor:
    """What a cache of this kind keeps of `x`."""
    if kind is KVCacheDtype.AUTO:
        return x
    codes, scale, zero = encode(x, kind)
    return (codes - zero[..., None]) * scale[..., None]


def run_steps(
    kernels: Kernels,
    shape: KVShape,
    heads: int,
    spec: AttentionSpec,
    lengths: list[int],
    *,
    block_size: int,
    most: int,
    seed: int = 0,
    stale: float = math.nan,
    dtype: torch.dtype = torch.float32,
    kind: KVCacheDtype = KVCacheDtype.AUTO,
) -> None:
    """Bring sequences to their lengths in random chunks over a dirty cache; compare every chunk.

    Attention is expected over what the codes of a quantised cache stand for.
    """
    chance = random.Random(seed)
    torch.manual_seed(seed)
    sequences, count = random_sequences(shape, lengths, block_size, dtype, chance)
    kv = kernels.allocate_kv([shape, shape], count, block_size, dtype, CPU, kind)
    kept = [Sequence(_round_trip(s.key, kind), _round_trip(s.value, kind), s.table) for s in sequences]
    spoil(kv, stale)
    tolerance = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    for numbers in random_steps(lengths, most, chance):
        parts = [(sequences[i], start, end) for i, start, end in numbers]
        inputs = make_inputs(parts, block_size)
        step = kv.step(inputs)
        query = torch.randn(inputs.query_starts[-1], heads, shape.key_dim).to(dtype)
        step.write(
            1, torch.cat([s.key[a:b] for s, a, b in parts]), torch.cat([s.value[a:b] for s, a, b in parts])
        )
        found = step.attend(1, query, spec)
        starts = inputs.query_starts
        expected = [
            naive_attention(query[starts[k] : starts[k + 1]], kept[i], start, spec)
            for k, (i, start, _) in enumerate(numbers)
        ]
        torch.testing.assert_close(found.float(), torch.cat(expected).float(), **tolerance)
