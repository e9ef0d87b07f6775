"""Which flag an argument was given by: known to those who read flags, not to those who compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def flags(prefix: str) -> Iterator[None]:
    """Put a prefix such as `--model.` before a ValueError, which begins with an argument's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
