"""Repeats a reading while others use the device, as long as patience lasts; what counts says how disturbed it was.

`while quiet.reads(): taken = ...`, then `quiet.others`.
"""

import time
from collections.abc import Callable

from maveriq.contracts import QUIET_SHARE
from maveriq_profiler.neighbours import Neighbours

PATIENCE_SHARE = 0.5  # of what an item of a programme is expected to take
_PAUSE_S = 0.25


class Quiet:
    def __init__(
        self, neighbours: Neighbours, patience_s: float,
        *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """
        Args:
            patience_s: that readings which do not count, and pauses after them, may take together.
        """
        self._neighbours, self._patience_s = neighbours, patience_s
        self._clock, self._sleep = clock, sleep
        self._begun_s: float | None = None
        self.others: float | None = None
        """Share of the device that others took during the last reading; None: nobody can tell."""

    def reads(self) -> bool:
        """Whether to read (again): asked before a reading and after it."""
        if self._begun_s is not None:
            self.others = self._neighbours.look()
            if self.others is None or self.others <= QUIET_SHARE or self._patience_s <= 0:
                self._begun_s = None
                return False
            self._sleep(_PAUSE_S)
            self._patience_s -= self._clock() - self._begun_s
        self._begun_s = self._clock()
        self._neighbours.look()
        return True
