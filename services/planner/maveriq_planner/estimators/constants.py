"""The constants of several calibrations, side by side. Pure: calibrations in, arrays out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np

from maveriq.contracts import Calibration
from maveriq_planner.arrays import Array, Flags, Indices

_BETWEEN = ("idle", "hop.")


@dataclass(frozen=True, slots=True)
class Constants:
    """Of T calibrations and all N constants that any of them knows; 0 for those that one does not know."""

    calibrations: tuple[Calibration, ...]
    places: Mapping[str, int]
    values: Array  # [T, N]
    between: Flags  # [N]
    """Which are what a pipeline adds between its stages, no work of the last one."""
    residual: Array  # [T]
    """Relative standard deviation of what the fit left."""
    memory: tuple[Mapping[str, float], ...]
    memory_margin: Array  # [T]
    memory_miss: Array  # [T]
    """That nine predictions of ten stay within; relative."""
    runtime_gib: tuple[Mapping[tuple[int, int], float], ...]
    """On each GPU, by TP and PP degree."""

    def memory_of(self, name: str) -> Array:
        """[T]"""
        return np.array([known.get(name, 0.0) for known in self.memory])

    def runtimes(self, tp: int, num_pps: int) -> Array:
        """[T, P] GiB on each GPU: as measured at these degrees, else the most that any GPU took at others."""
        most = [max(known.values(), default=0.0) for known in self.runtime_gib]
        found = np.repeat(np.array(most)[:, None], num_pps, axis=1)
        for row, known in zip(found, self.runtime_gib, strict=True):
            for (of_tp, pp), gib in known.items():
                if of_tp == tp and pp <= num_pps:
                    row[pp - 1] = gib
        return found

    def covariance(self, i: int) -> Array:
        """[N, N] of one calibration; 0 for constants that it does not know or left at 0."""
        calibration = self.calibrations[i]
        size = len(calibration.latency)
        found = np.zeros((len(self.places), len(self.places)))
        own = np.zeros((size, size))
        own[_lower(size)] = np.fromiter(chain.from_iterable(calibration.covariance), dtype=float)
        at = np.array([self.places[constant.name] for constant in calibration.latency])
        found[np.ix_(at, at)] = own + own.T - np.diag(own.diagonal())
        known = self.values[i] > 0
        found *= known
        found *= known[:, None]
        return found


def constants_of(calibrations: Sequence[Calibration]) -> Constants:
    names = dict.fromkeys(constant.name for one in calibrations for constant in one.latency)
    places = {name: i for i, name in enumerate(names)}
    values = np.zeros((len(calibrations), len(names)))
    for row, one in zip(values, calibrations, strict=True):
        for constant in one.latency:
            row[places[constant.name]] = constant.value
    memory = tuple({constant.name: constant.value for constant in one.memory} for one in calibrations)
    left = [one.latency_residuals for one in calibrations]
    return Constants(
        calibrations=tuple(calibrations),
        places=places,
        values=values,
        between=np.array([name.removeprefix("prompt_").startswith(_BETWEEN) for name in names], dtype=np.bool_),
        residual=np.array([max(1.4826 * one.median, one.p90 / 1.645) for one in left]),
        memory=memory,
        memory_margin=np.array([one.memory_margin for one in calibrations]),
        memory_miss=np.array([one.memory_residuals.p90 if one.memory_residuals else 0.0 for one in calibrations]),
        runtime_gib=tuple(dict(_runtimes(known)) for known in memory),
    )


@cache
def _lower(size: int) -> tuple[Indices, Indices]:
    return np.tril_indices(size)


def _runtimes(memory: Mapping[str, float]) -> Iterator[tuple[tuple[int, int], float]]:
    for name, value in memory.items():
        if name.startswith("runtime.tp"):
            tp, pp = map(int, name.removeprefix("runtime.tp").split(".pp"))
            yield (tp, pp), value / (tp * pp)
