"""Keeps the stages of a replica on one core while one micro-batch is all there is: then one stage at a time computes.

A core that slept computes more slowly at first, and the next stage's would have slept for as long as this one computed.
Linux only. Stages of several threads, and those on GPUs, are left where they are. Nothing here needs torch.
"""

import os
from contextlib import suppress
from pathlib import Path

_STAT = Path("/proc/thread-self/stat")
_PROCESSOR = 36  # of the fields after the thread's name: the core that it runs on
_STEPS_KEPT = 16


class StageCore:
    """Where the thread that computes a stage runs."""

    def __init__(self, *, movable: bool) -> None:
        """
        Args:
            movable: a stage that one thread computes on a CPU.
        """
        self._allowed = os.sched_getaffinity(0) if movable and hasattr(os, "sched_getaffinity") else set[int]()
        self._movable = len(self._allowed) > 1
        self._kept: int | None = None
        self._num_kept = 0

    def follow(self, core: int | None) -> None:
        """Compute on this core from now on; None: on any."""
        if not self._movable or core == self._kept:
            return
        with suppress(OSError):  # a core may be taken from the process: then it stays as free as it was
            os.sched_setaffinity(0, self._allowed if core is None else {core})
            self._kept = core

    def before(self, *, alone: bool) -> None:
        """The first stage is to compute: on any core if other steps are under way, and one time in sixteen.

        Who shares a core with another replica's stages is so moved to one that is idle, by the system's own scheduler.
        """
        self._num_kept += 1
        if not alone or self._num_kept >= _STEPS_KEPT:
            self.follow(None)

    def after(self, *, alone: bool) -> int | None:
        """The first stage has computed: where the others compute the same step; None: each where it likes."""
        if alone and self._movable and self._kept is None:
            self.follow(int(_STAT.read_text().rpartition(")")[2].split()[_PROCESSOR]))
            self._num_kept = 0
        return self._kept
