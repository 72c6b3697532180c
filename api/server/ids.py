"""new_id: names of answers and of their parts."""

from secrets import token_hex


def new_id(prefix: str) -> str:
    """A fresh id that begins so."""
    return f"{prefix}{token_hex(12)}"
