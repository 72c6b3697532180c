"""count_bytes: the size of a text, a slice at a time, so that other threads get their turns in between."""

_SLICE = 1 << 16
"""Characters."""


def count_bytes(text: str, *, without_blanks: bool = False, shrinks: int = 1) -> int:
    """Bytes of UTF-8 that are left of `text` at least, where blanks may vanish and others become fewer.

    Args:
        without_blanks: blanks, wherever they stand, do not count.
        shrinks: so many bytes beyond ASCII may become one.
    """
    count = 0
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE]
        if without_blanks:
            part = "".join(part.split())
        size = len(part.encode("utf-8", "surrogatepass"))
        count += size if len(part) == size else -(-size // shrinks)
    return count
