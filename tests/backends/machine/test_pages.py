"""Memory in large pages is zero, begins a page, and is whole whatever its size."""

import pytest
import torch

from millstream.backends.machine.pages import LARGE_PAGE, reserve


@pytest.mark.parametrize("size", [0, 1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 3 * LARGE_PAGE + 5])
def test_memory_is_zero_and_can_be_written_to_its_end(size: int) -> None:
    memory = reserve(size)
    assert memory.dtype == torch.uint8 and memory.shape == (size,)
    assert not memory.any()
    memory.fill_(7)
    assert int(memory.sum(dtype=torch.int64)) == 7 * size


def test_large_memory_begins_a_large_page() -> None:
    assert reserve(LARGE_PAGE).data_ptr() % LARGE_PAGE == 0


def test_pieces_keep_the_memory() -> None:
    piece = reserve(2 * LARGE_PAGE)[LARGE_PAGE:].view(torch.int32)
    piece.fill_(3)
    others = [reserve(2 * LARGE_PAGE).fill_(9) for _ in range(4)]
    assert (piece == 3).all() and all((other == 9).all() for other in others)
