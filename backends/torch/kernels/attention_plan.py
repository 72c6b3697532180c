"""Which blocks each chunk of a step reads and what it may see of them: shared by all layers of one kind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .step_inputs import StepInputs

PADDING = 4
"""A decode chunk joins a group when at most a quarter of the group's longest table, or this many blocks, is
padding."""
TILE_ROWS = 512
"""Most queries under one explicit mask."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """B chunks of one token each, their contexts padded to L positions of whole blocks."""

    rows: Tensor
    """[B] int64, rows of the step's tokens."""
    index: Tensor
    """[heads * B * L / block_size] int64, blocks counted over all heads."""
    mask: Tensor
    """[B, 1, 1, L], 0 or -inf."""


@dataclass(frozen=True, slots=True)
class QueryTile:
    """Rows `begin` to `end` of the step's tokens: consecutive positions of one sequence."""

    begin: int
    end: int
    index: Tensor
    """[heads * blocks] int64, as in DecodeGroup."""
    length: int
    """Positions to look at, from the first gathered one."""
    mask: Tensor | None
    """[end - begin, length], 0 or -inf; None: plainly causal, the first query at the first position."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All chunks of a step, each in exactly one group or in one or more tiles."""

    decodes: tuple[DecodeGroup, ...]
    tiles: tuple[QueryTile, ...]


@dataclass(frozen=True, slots=True)
class _Planner:
    inputs: StepInputs
    window: int | None
    causal_kernel: bool
    block_size: int
    head_offsets: Tensor
    spare_block: int
    group_blocks: int
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.inputs.block_tables.device

    def first_visible(self, position: int) -> int:
        """First position that a query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def index(self, blocks: Tensor) -> Tensor:
        return (self.head_offsets[:, None] + blocks.flatten()).flatten()

    def bias(self, hidden: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(
            hidden, -torch.inf
        )

    def group(self, members: list[tuple[int, int, int]]) -> DecodeGroup:
        """Members are (blocks read, first block, chunk), the longest one first."""
        inputs, size = self.inputs, self.block_size
        longest = members[0][0]
        facts = torch.tensor(
            [
                (
                    i,
                    count,
                    first,
                    inputs.query_starts[i],
                    length - first * size,
                    self.first_visible(length - 1),
                )
                for count, first, i in members
                for length in (inputs.context_lengths[i],)
            ],
            device=self.device,
        )
        chunks, counts, firsts, rows, lengths, visible = facts.unbind(1)
        offsets = torch.arange(longest, device=self.device)
        columns = (firsts[:, None] + offsets).clamp_(max=inputs.block_tables.shape[1] - 1)
        blocks = inputs.block_tables[chunks[:, None], columns]
        blocks = blocks.masked_fill_(offsets >= counts[:, None], self.spare_block)
        positions = torch.arange(longest * size, device=self.device)
        hidden = positions >= lengths[:, None]
        if self.window is not None:
            hidden |= positions < (visible - firsts * size)[:, None]
        return DecodeGroup(rows, self.index(blocks), self.bias(hidden)[:, None, None])

    def tile(self, i: int, begin: int, end: int, masked: bool) -> QueryTile:
        """Rows `begin` to `end` of the step, all of chunk `i`."""
        inputs, size = self.inputs, self.block_size
        position = inputs.context_lengths[i] - inputs.query_starts[i + 1] + begin
        context = position + end - begin
        first = self.first_visible(position) // size
        index = self.index(inputs.block_tables[i, first : -(-context // size)])
        length = context - first * size
        if not masked:
            return QueryTile(begin, end, index, length, None)
        queries = torch.arange(position, context, device=self.device)[:, None]
        keys = torch.arange(first * size, context, device=self.device)
        hidden = keys > queries
        if self.window is not None:
            hidden |= keys <= queries - self.window
        return QueryTile(begin, end, index, length, self.bias(hidden))

    def tiles(self, i: int) -> list[QueryTile]:
        starts = self.inputs.query_starts
        begin, end, context = starts[i], starts[i + 1], self.inputs.context_lengths[i]
        whole = context == end - begin and (self.window is None or context <= self.window)
        if whole and self.causal_kernel:
            return [self.tile(i, begin, end, masked=False)]
        return [
            self.tile(i, row, min(row + TILE_ROWS, end), masked=True) for row in range(begin, end, TILE_ROWS)
        ]

    def decode_groups(self, chunks: list[int]) -> list[DecodeGroup]:
        """Sort by blocks read, then cut where padding or memory would be too much."""
        members = []
        for i in chunks:
            length = self.inputs.context_lengths[i]
            first = self.first_visible(length - 1) // self.block_size
            members.append((-(-length // self.block_size) - first, first, i))
        members.sort(reverse=True)
        groups = []
        begin = 0
        for k in range(1, len(members) + 1):
            longest = members[begin][0]
            if (
                k == len(members)
                or (k + 1 - begin) * longest > self.group_blocks
                or longest - members[k][0] > max(PADDING, longest // 4)
            ):
                groups.append(self.group(members[begin:k]))
                begin = k
        return groups


def plan_attention(
    inputs: StepInputs,
    *,
    window: int | None,
    causal_kernel: bool,
    block_size: int,
    head_offsets: Tensor,
    spare_block: int,
    group_blocks: int,
    dtype: torch.dtype,
) -> AttentionPlan:
    """Plan one step for layers of one window and one number of heads.

    Args:
        causal_kernel: attention can be causal without a mask where a tile starts its sequence.
        head_offsets: [heads] what to add to a block's id for each head.
        spare_block: a block of zeros, for padding.
        group_blocks: most blocks that a group of decode chunks gathers, padding included, unless one chunk
            alone has more.
        dtype: of the masks.
    """
    planner = _Planner(
        inputs, window, causal_kernel, block_size, head_offsets, spare_block, group_blocks, dtype
    )
    starts = inputs.query_starts
    decodes: list[int] = []
    tiles: list[QueryTile] = []
    for i in range(len(starts) - 1):
        if starts[i + 1] - starts[i] == 1:
            decodes.append(i)
        else:
            tiles += planner.tiles(i)
    return AttentionPlan(tuple(planner.decode_groups(decodes)), tuple(tiles))
