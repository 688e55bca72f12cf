"""Whether the kernel killed for lack of memory: Linux's own count, in which whoever died of signal 9 is looked for.

Whether that process was one of them nobody tells; where memory is overcommitted, or a container's is limited, it is how
nearly all that ask for too much end.
"""

import re
import signal
from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def ended(code: int) -> str:
    """How, by the exit code that asyncio gives."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"


class OomKills:
    """Since this was made."""

    def __init__(self, vmstat: Path = VMSTAT) -> None:
        self._vmstat = vmstat
        self._before = self._count()

    def explained(self, words: str) -> str:
        """How a process ended, and why where it is known."""
        was_killed = re.search(rf"killed by signal {signal.SIGKILL:d}\b", words) is not None
        if was_killed and self._count() > self._before:
            return f"{words}\nthe kernel was out of memory meanwhile, and killed processes for it"
        return words

    def _count(self) -> int:
        """Of the whole machine; 0 where it is not told."""
        try:
            found = re.search(r"^oom_kill (\d+)$", self._vmstat.read_text(), re.MULTILINE)
        except OSError:
            return 0
        return int(found[1]) if found else 0
