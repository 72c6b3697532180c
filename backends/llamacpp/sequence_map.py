"""SequenceMap: which of llama.cpp's sequences computes which request, and whose blocks each one holds.

llama.cpp knows no blocks. It knows sequences under small ids, here called lanes, that hold the cells of
positions 0, 1, …; so a block id is only a name. Each lane keeps a record: the block table under which its
cells were computed. Equal ids at equal places of two tables mean equal content up to there, because an id
that others may match stands for the digest of the whole prefix; and whenever an id is given to new content,
the records that still name it are cut. A lane whose request has ended keeps its cells for whoever comes with
a table that begins alike: it is continued in place, or its cells are copied to another lane. Content that
no lane holds any more is computed again, so the map can only ever cost time.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .fixed_shapes import alike

NEAR = 4
"""Lanes that lie at most so far from one in use are as good as its neighbours; see `SequenceMap`."""


class Cells(Protocol):
    """The memory of a llama context, as far as the map moves things about in it."""

    def copy(self, source: int, target: int, end: int) -> None:
        """Lane `target`, which is empty, gets positions 0 to `end` - 1 of lane `source`."""

    def remove(self, lane: int, begin: int) -> None:
        """Lane `lane` loses its positions from `begin` on."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A sequence without a lane that needs one with the content of its first `start` positions."""

    seq: int
    blocks: Sequence[int]
    start: int
    prompt: int = 0
    """Tokens of its prompt, where these decide how it is computed; see `fixed_shapes.alike`."""


@dataclass(frozen=True, slots=True)
class MapStats:
    """Counters since the start."""

    continued: int
    """Sequences that went on in the lane that held their prefix."""
    copied: int
    """Sequences whose prefix was copied from another lane."""
    missing_tokens: int
    """Positions of prefixes that no lane held any more."""


@dataclass(slots=True, eq=False)
class _Lane:
    index: int
    blocks: list[int] = field(default_factory=list)
    length: int = 0
    """Positions held; the last of `blocks` may be held in part."""
    last_used: int = 0
    """Step in which its last sequence ended; 0 for an empty lane."""
    seq: int | None = None
    prompt: int = 0
    """That of the opening that its content is computed for."""


class SequenceMap:
    """Lanes, their records, and the lane of every live sequence.

    With `streams`, every lane has memory of its own, and llama.cpp computes lanes in one pass only where
    their ids follow one another. New sequences then get lanes near those in use, the least recently used
    among these. Without, all lanes share one memory, and any free lane is as good as another.

    Where `can_cut` is False a lane cannot lose a part of its cells (recurrent models): nothing is reused.
    """

    def __init__(
        self, cells: Cells, *, lanes: int, block_size: int, streams: bool, can_cut: bool = True
    ) -> None:
        self._cells = cells
        self._block_size = block_size
        self.streams = streams
        self._can_cut = can_cut
        self._lanes = [_Lane(index) for index in range(lanes)]
        self._lane_of: dict[int, _Lane] = {}
        self._holders: defaultdict[int, set[int]] = defaultdict(set)
        self._dropped: set[int] = set()
        self._steps = 0
        self._continued = self._copied = self._missing = 0

    # The verbs of a step, in this order

    def retire(self, seq: int) -> None:
        """The sequence ends, if it is live; its lane keeps the content."""
        self._steps += 1
        lane = self._lane_of.pop(seq, None)
        if lane is None:
            return
        lane.seq = None
        lane.last_used = self._steps
        if not self._can_cut or not lane.length:
            self._cut(lane, 0)

    def open(self, openings: Sequence[Opening]) -> None:
        """Give each sequence a lane with as much of its prefix as any lane holds.

        There are at least as many lanes as live sequences. Long prefixes come first, and a lane that another
        sequence of the step is going to read is written over only when there is no other.
        """
        waiting = [(opening, *self._sources(opening)) for opening in openings]
        waiting.sort(key=lambda entry: -entry[2])
        for place, (opening, _, _) in enumerate(waiting):
            found, held = self._sources(opening)
            read_later = {later[0].index for _, later, _ in waiting[place + 1 :] if later}
            lane = self._choose(found, held, read_later)
            if lane in found:
                self._cut(lane, held)
                self._continued += 1
            else:
                self._cut(lane, 0)
                if found:
                    self._cells.copy(found[0].index, lane.index, held)
                    self._copied += 1
            self._rename(lane, opening.blocks, held)
            self._missing += opening.start - held
            lane.seq, lane.prompt = opening.seq, opening.prompt
            self._lane_of[opening.seq] = lane

    def align(self, seq: int, start: int) -> int:
        """Cut the live sequence back to `start`; how many positions of it are held now, at most that."""
        lane = self._lane_of[seq]
        if lane.length > start:
            self._cut(lane, start if self._can_cut else 0)
        return lane.length

    def claim(self, seq: int, blocks: Sequence[int], end: int) -> None:
        """The positions from those held up to `end` are about to be computed, in these blocks.

        Ended sequences that hold other content under the names of these blocks lose it.
        """
        lane = self._lane_of[seq]
        size = self._block_size
        for index in range(lane.length // size, -(-end // size)):
            block = blocks[index]
            for holder in [self._lanes[other] for other in self._holders.get(block, ())]:
                if holder.seq is None:
                    self._cut(holder, holder.blocks.index(block) * size)
            if index == len(lane.blocks):
                lane.blocks.append(block)
                self._holders[block].add(lane.index)
        lane.length = end

    def take_lost(self) -> tuple[int, ...]:
        """Blocks that some lane held before, and none does now; each is told once."""
        lost = tuple(sorted(block for block in self._dropped if block not in self._holders))
        self._dropped.clear()
        return lost

    # In between

    def is_open(self, seq: int) -> bool:
        """True while the sequence has a lane."""
        return seq in self._lane_of

    def lane(self, seq: int) -> int:
        """The lane of a live sequence."""
        return self._lane_of[seq].index

    def idle_length(self, lane: int) -> int | None:
        """Positions that an idle lane holds; None for one in use."""
        record = self._lanes[lane]
        return record.length if record.seq is None else None

    def forget_idle(self) -> None:
        """Empty every lane whose sequence has ended."""
        for lane in self._lanes:
            if lane.seq is None:
                self._cut(lane, 0)

    def clear(self) -> None:
        """The memory was emptied: no sequence lives, and no content is left."""
        self._lanes = [_Lane(index) for index in range(len(self._lanes))]
        self._lane_of.clear()
        self._holders.clear()
        self._dropped.clear()

    @property
    def stats(self) -> MapStats:
        """Counters since the start."""
        return MapStats(self._continued, self._copied, self._missing)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless records, holders and live sequences agree."""
        holders = defaultdict(set)
        for lane in self._lanes:
            if len(lane.blocks) != -(-lane.length // self._block_size):
                raise RuntimeError(
                    f"lane {lane.index} holds {lane.length} positions in {len(lane.blocks)} blocks"
                )
            for block in lane.blocks:
                holders[block].add(lane.index)
        if holders != self._holders:
            raise RuntimeError("the holders of blocks and the records of lanes disagree")
        live = {lane.seq: lane for lane in self._lanes if lane.seq is not None}
        if live != self._lane_of:
            raise RuntimeError("live sequences and lanes in use disagree")

    # Pieces

    def _sources(self, opening: Opening) -> tuple[list[_Lane], int]:
        """Lanes that hold the most of the opening's first `start` positions, and how many they hold."""
        size, blocks = self._block_size, opening.blocks
        if self._can_cut:
            for count in range(-(-opening.start // size), 0, -1):
                held = min(count * size, opening.start)
                block = blocks[count - 1]
                found = [
                    lane
                    for lane in (self._lanes[index] for index in self._holders.get(block, ()))
                    if lane.length >= held
                    and lane.blocks[count - 1 : count] == [block]
                    and alike(lane.prompt, opening.prompt, held) == held
                ]
                if found:
                    return found, held
        return [], 0

    def _choose(self, found: list[_Lane], held: int, read_later: set[int]) -> _Lane:
        """The idle lane for a sequence whose first `held` positions are in the lanes `found`.

        Near the lanes in use before far from them; then one that holds the prefix and nothing else; then
        empty ones; then the one that was used least recently, whose content is lost.
        """
        remoteness = self._remoteness()

        def rank(lane: _Lane) -> tuple[bool, int, bool, int, int]:
            needed = lane.index in read_later and lane not in found
            exact = lane.length == held and lane in found
            return needed, remoteness[lane.index], not exact, lane.last_used, lane.index

        return min((lane for lane in self._lanes if lane.seq is None), key=rank)

    def _remoteness(self) -> list[int]:
        """For each lane, how far it is from the nearest one in use; 0 where that is no matter."""
        count = len(self._lanes)
        if not self.streams or not self._lane_of:
            return [0] * count
        away = [count] * count
        for order in (range(count), range(count - 1, -1, -1)):
            distance = count
            for index in order:
                distance = 0 if self._lanes[index].seq is not None else distance + 1
                away[index] = min(away[index], distance)
        return [0 if distance <= NEAR else distance for distance in away]

    def _cut(self, lane: _Lane, length: int) -> None:
        """The lane keeps at most its first `length` positions."""
        if lane.length > length:
            self._cells.remove(lane.index, length)
            keep = -(-length // self._block_size)
            self._unname(lane, lane.blocks[keep:])
            del lane.blocks[keep:]
            lane.length = length
        if not lane.length:
            lane.last_used = 0

    def _rename(self, lane: _Lane, blocks: Sequence[int], length: int) -> None:
        """The lane's first `length` positions go by the names of another, equal table."""
        names = list(blocks[: -(-length // self._block_size)])
        self._unname(lane, lane.blocks)
        for block in names:
            self._holders[block].add(lane.index)
        lane.blocks = names
        lane.length = length

    def _unname(self, lane: _Lane, blocks: Iterable[int]) -> None:
        for block in blocks:
            holders = self._holders[block]
            holders.remove(lane.index)
            if not holders:
                del self._holders[block]
                self._dropped.add(block)
