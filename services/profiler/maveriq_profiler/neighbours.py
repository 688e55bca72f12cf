"""What others take of a device while it is measured: Linux's count of core time, and NVML's word on a GPU."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

_UNSURE_TICKS = 2  # the machine's and a process's core time are counted apart, each to a tick


class Neighbours(Protocol):
    def look(self) -> float | None:
        """Share of the device that others took since the last look, 0 to 1; None: nobody can tell."""
        ...


def neighbours_of(device: str) -> Neighbours:
    """Whoever is neither this process nor below it.

    Args:
        device: cpu or cuda:<n>; of several GPUs with commas between, the most disturbed counts.
    """
    if device == "cpu":
        return CpuNeighbours(lambda: _ticks_of(family()))
    return GpuNeighbours(import_module("pynvml"), [int(name.removeprefix("cuda:")) for name in device.split(",")])


def anyone_on(device: str) -> Neighbours:
    """Whoever it is: for a process that is to begin when a device is quiet."""
    if device == "cpu":
        return CpuNeighbours(lambda: 0)
    return GpuLoad(import_module("pynvml"), [int(name.removeprefix("cuda:")) for name in device.split(",")])


@dataclass(frozen=True, slots=True)
class _Ticks:
    capacity: int
    others: int


class CpuNeighbours:
    """Of all cores together: who computes on another core slows this one's memory too."""

    def __init__(self, own_ticks: Callable[[], int], stat: Path = Path("/proc/stat")) -> None:
        self._own_ticks, self._stat = own_ticks, stat
        self._before = self._read()

    def look(self) -> float | None:
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            return None
        capacity = self._before.capacity - before.capacity
        taken = self._before.others - before.others - _UNSURE_TICKS
        return min(1.0, max(0.0, taken / capacity)) if capacity > 0 else 0.0

    def _read(self) -> _Ticks | None:
        try:
            words = self._stat.read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None  # no Linux
        user, nice, system, idle, waiting, *stolen = (int(word) for word in words[:8])
        busy = user + nice + system + sum(stolen)  # interrupts, and what a hypervisor gave to others
        return _Ticks(capacity=busy + idle + waiting, others=busy - self._own_ticks())


class Untold:
    """Where nobody can be asked."""

    def look(self) -> float | None:
        return None


class GpuNeighbours:
    """By process, where NVML tells; it counts processes as the machine does, which a container may not."""

    def __init__(self, nvml: Any, numbers: list[int]) -> None:
        self._nvml, self._handles = nvml, _handles(nvml, numbers)
        self._seen = [0] * len(numbers)

    def look(self) -> float | None:
        own = family()
        shares = [self._share(at, handle, own) for at, handle in enumerate(self._handles)]
        known = [share for share in shares if share is not None]
        return max(known) if known and len(known) == len(shares) else None

    def _share(self, at: int, handle: Any, own: set[int]) -> float | None:
        try:
            found = self._nvml.nvmlDeviceGetProcessUtilization(handle, self._seen[at])
        except self._nvml.NVMLError:
            return None
        self._seen[at] = max((int(one.timeStamp) for one in found), default=self._seen[at])
        if not any(one.pid in own for one in found):
            return None  # these are numbers of another namespace, or nothing of ours ran
        return min(1.0, sum(min(100, int(one.smUtil)) for one in found if one.pid not in own) / 100)


class GpuLoad:
    """Of a GPU that this process does not use."""

    def __init__(self, nvml: Any, numbers: list[int]) -> None:
        self._nvml, self._handles = nvml, _handles(nvml, numbers)

    def look(self) -> float | None:
        try:
            shares = [int(self._nvml.nvmlDeviceGetUtilizationRates(one).gpu) / 100 for one in self._handles]
        except self._nvml.NVMLError:
            return None
        return max(shares, default=None)


def _handles(nvml: Any, numbers: list[int]) -> list[Any]:
    """Of no GPU where there is no driver: then nobody can tell."""
    try:
        nvml.nvmlInit()
        return [nvml.nvmlDeviceGetHandleByIndex(number) for number in numbers]
    except nvml.NVMLError:
        return []


def family() -> set[int]:
    """This process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if words := _stat_of(int(folder.name)):
            children.setdefault(int(words[1]), []).append(int(folder.name))
    found, ahead = {os.getpid()}, [os.getpid()]
    while ahead:
        below = [pid for pid in children.get(ahead.pop(), ()) if pid not in found]
        found.update(below)
        ahead += below
    return found


def _ticks_of(pids: set[int]) -> int:
    """Core time so far, that of children which have ended included."""
    return sum(sum(map(int, words[11:15])) for pid in pids if (words := _stat_of(pid)))


def _stat_of(pid: int) -> list[str]:
    """From the state on; empty: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
