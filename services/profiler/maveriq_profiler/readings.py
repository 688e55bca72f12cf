"""Takes the time of passes; which readings count, and their middle."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypedDict, TypeVar

Step = TypeVar("Step")

_AWAY_SHARE = 0.03
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median deviation


@dataclass(frozen=True, slots=True)
class Timed:
    ms: float
    core_ms: float
    """Of these, those in which this thread had its core to itself."""

    @property
    def is_disturbed(self) -> bool:
        return self.ms - self.core_ms > _AWAY_SHARE * self.ms


def timed(run: Callable[[Step], object], steps: Iterable[Step], *, alone: bool) -> Timed:
    """All steps, one after the other.

    Args:
        alone: this thread does all of the work and waits for nobody.
    """
    begun, computed = time.perf_counter(), time.thread_time()
    for step in steps:
        run(step)
    taken_ms = (time.perf_counter() - begun) * 1e3
    return Timed(taken_ms, min(taken_ms, (time.thread_time() - computed) * 1e3) if alone else taken_ms)


def counted(taken: Sequence[Timed], *, enough: int) -> list[float]:
    """Those that nobody disturbed, where they are enough; else what all took of their core: a thread that shares its
    core with others takes many times as long, but computes little longer.
    """
    quiet = [each.ms for each in taken if not each.is_disturbed]
    return quiet if len(quiet) >= enough else [each.core_ms for each in taken]


class Figures(TypedDict):
    """Fields of a sample."""

    prefill_ms: float
    decode_ms: float
    prefill_spread: float
    decode_spread: float
    others: float | None


@dataclass(frozen=True, slots=True)
class Readings:
    """Of one run that is repeated."""

    prefill_ms: list[float] = field(default_factory=list[float])
    decode_ms: list[float] = field(default_factory=list[float])
    others: list[float | None] = field(default_factory=list[float | None])
    """What others took of the device during each."""

    def add(self, prefill_ms: Sequence[float], decode_ms: Sequence[float], others: float | None) -> None:
        self.prefill_ms.extend(prefill_ms)
        self.decode_ms.extend(decode_ms)
        self.others.append(others)

    @property
    def figures(self) -> Figures:
        known = [share for share in self.others if share is not None]
        return {
            "prefill_ms": median(self.prefill_ms),
            "decode_ms": median(self.decode_ms),
            "prefill_spread": spread(self.prefill_ms),
            "decode_spread": spread(self.decode_ms),
            "others": median(known) if len(known) == len(self.others) else None,
        }


def spread(values: Sequence[float]) -> float:
    """Relative standard deviation, by the median distance from the median: outliers say little."""
    middle = median(values)
    return round(_NORMAL * median(abs(value - middle) for value in values) / middle, 4)
