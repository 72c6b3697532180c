"""Which sequences are padded to one length and computed together."""

from collections.abc import Iterator, Sequence

GROUP_TOKENS = 4096
"""Most tokens of a group, padding included, unless one sequence alone has more."""
MAX_PADDING = 8
"""At most one token in so many is padding."""


def groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences to be computed together, those of the longest sequences first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    tokens = 0
    for i in order:
        padded = (len(group) + 1) * lengths[group[0]] if group else lengths[i]
        padding = padded - tokens - lengths[i]
        if group and (padded > GROUP_TOKENS or padding * MAX_PADDING > padded):
            yield group
            group, tokens = [], 0
        group.append(i)
        tokens += lengths[i]
    if group:
        yield group
