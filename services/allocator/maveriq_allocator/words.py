"""Bytes and names as people read them. Pure."""

from collections.abc import Iterable


def readable(num_bytes: int) -> str:
    """Bytes in the largest unit that leaves a number above 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"


def names(found: Iterable[str]) -> str:
    """Each once, in order."""
    return ", ".join(sorted(set(found)))
