"""Memory for what every step reads from end to end: in large pages where the system has them."""

from __future__ import annotations

import mmap as mmap_module
import sys
from contextlib import suppress
from mmap import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGE_PAGE = 2 << 20
"""Bytes of a large page."""


def reserve(size: int) -> Tensor:
    """[size] uint8 that begins a page; zeros, taken from the system only as they are written.

    With small pages, every few kilobytes that are read cost a walk through the page tables.
    """
    import torch

    if size < LARGE_PAGE:
        return torch.zeros(size, dtype=torch.uint8)
    # Shared memory, the default, gets large pages on few systems only.
    if sys.platform == "win32":
        memory = mmap(-1, size + LARGE_PAGE)
    else:
        memory = mmap(-1, size + LARGE_PAGE, flags=mmap_module.MAP_PRIVATE | mmap_module.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -whole.data_ptr() % LARGE_PAGE
    if hasattr(mmap_module, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            # Only pages that are used as a whole: no memory is taken that nobody asked for.
            memory.madvise(mmap_module.MADV_HUGEPAGE, begin, size // LARGE_PAGE * LARGE_PAGE)
    return whole[begin : begin + size]
