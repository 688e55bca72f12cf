"""Finds and ends the processes below one (an engine's ranks may be its grandchildren). Reads /proc."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> dict[int, int]:
    """Every process below `pid`, with the clock tick at which it started; itself not among them.

    A number is used again once its process has ended: number and tick together are not.
    """
    children: dict[int, list[tuple[int, int]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (stat := _stat(int(folder.name))) is not None:
            children.setdefault(stat[0], []).append((int(folder.name), stat[1]))
    found: dict[int, int] = {}
    ahead = [pid]
    while ahead:
        for child, tick in children.get(ahead.pop(), ()):
            if child not in found:
                found[child] = tick
                ahead.append(child)
    return found


def end(found: Mapping[int, int]) -> None:
    """Kill them; those that have ended already are passed over."""
    for pid, tick in found.items():
        stat = _stat(pid)
        if stat is not None and stat[1] == tick:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, tick at which it started); None: it has ended, or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = text.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces; state is the word after it
    return int(words[1]), int(words[19])
