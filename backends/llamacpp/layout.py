"""Layout: how llama.cpp's sequences (lanes) share its memory, and how that memory begins small and grows.

llama.cpp fills its memory with zeros when it makes it, so all of it is resident from then on; 4 KiB at a
time that takes about a second per GB. A cache that may grow therefore begins with `FIRST_BYTES`, and when
it is full its content is moved into one of at least twice the size: what is resident is what has been
needed, and all the moves together cost no more than twice the last one.
"""

from dataclasses import dataclass, replace

from ..worker import WorkerConfig

FIRST_BYTES = 256 << 20
"""What a cache that grows begins with, unless it never gets larger than that."""
STREAMS_BYTES = 2 << 30
"""Most that streams take at full length, where the model's weights take less than half of it."""
MIN_OUTPUT_ROWS = 128
"""Rows that there is room for even where fewer sequences run; prompts are scored in such micro-batches."""
_PADDING = 256
"""llama.cpp gives every stream a multiple of so many cells."""
MAX_CELLS = (1 << 31) - _PADDING
"""Positions and cells are 32-bit numbers in llama.cpp."""


@dataclass(frozen=True, slots=True)
class CacheCost:
    """What decides about a layout beside a WorkerConfig."""

    bytes_per_cell: int = 0
    """0 where there is no cache."""
    weights: int = 0
    """Bytes of the model's own tensors."""
    moves: bool = True
    """The memory can be moved into another context."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How lanes share the memory; see `choose_layout`."""

    streams: bool
    lanes: int
    cells: int
    """In all lanes together."""

    @property
    def lane_size(self) -> int:
        """Most positions that one lane may hold."""
        return self.cells // self.lanes if self.streams else self.cells


def choose_layout(
    config: WorkerConfig, max_lanes: int, is_causal: bool = True, cost: CacheCost | None = None
) -> Layout:
    """A stream for each sequence where the pool has room for all at full length, else one memory for all.

    In one memory every query walks over the cells of every sequence, while a stream costs its sequence
    nothing but its own: with 32 sequences of 512 tokens of a 0.5B model on two cores, streams give 1.4 times
    as many outputs per second. But only one memory lets sequences share cells, and so fit a smaller pool.
    There the lanes beyond `max_num_seqs` keep the prefixes of ended sequences; streams keep them without.
    Streams that grow are all as long as the longest sequence needs, so they are taken only where even at
    full length they are small, or no larger than twice the weights.

    Streams cut sequences of unequal lengths into micro-batches. Where the model is not causal, tokens see
    those that come after them, and must be in one micro-batch with these.
    """
    seats = min(config.max_num_seqs, max_lanes)
    if not is_causal:
        cells = max(config.num_blocks * config.block_size, config.max_num_batched_tokens)
        return Layout(False, seats, _padded(cells))
    blocks = -(-config.max_length // config.block_size)
    if config.batch_invariant:  # no sequence's cells may lie among another's
        seats = max(1, min(seats, config.num_blocks // blocks))
        return Layout(True, seats, seats * _padded(config.max_length))
    streams = Layout(True, seats, seats * _padded(config.max_length))
    if config.num_blocks >= seats * blocks and not (cost and _too_large(streams, config, cost)):
        return streams
    lanes = min(max_lanes, max(seats, MIN_OUTPUT_ROWS))
    return Layout(False, lanes, _padded(config.num_blocks * config.block_size))


def layouts_up_to(layout: Layout, config: WorkerConfig, cost: CacheCost) -> list[Layout]:
    """What the memory is made as, one after the other, up to `layout`: that alone where it is made whole."""
    if not (config.cache_grows and cost.moves and cost.bytes_per_cell):
        return [layout]
    cells = FIRST_BYTES // cost.bytes_per_cell
    if layout.cells > cells:
        cells = min(cells, layout.cells // 2)
    steps = []
    step = _resized(layout, cells)
    while step.cells * 2 <= layout.cells:
        steps.append(step)
        step = _resized(layout, step.cells * 2)
    return [*steps, layout]


def _too_large(streams: Layout, config: WorkerConfig, cost: CacheCost) -> bool:
    size = streams.cells * cost.bytes_per_cell
    return config.cache_grows and cost.moves and size > max(STREAMS_BYTES, 2 * cost.weights)


def _resized(layout: Layout, cells: int) -> Layout:
    """The layout with about so many cells, at least one padding's worth per lane that has its own."""
    parts = layout.lanes if layout.streams else 1
    return replace(layout, cells=parts * max(_PADDING, cells // parts // _PADDING * _PADDING))


def _padded(cells: int) -> int:
    return -(-cells // _PADDING) * _PADDING
