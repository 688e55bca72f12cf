"""Fits a law that is linear in non-negative constants to samples. Pure: feature rows and readings in, constants out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

_SINGULAR = 1e-10  # of a column's own length: less than this left over means that the others already say it
_HUBER = 1.345  # 95 % of least squares' efficiency on clean data (Huber 1981)
_QUIET = 0.002  # repeats of one shape differ by 0.2 % at best; below that there are no outliers
_ROUNDS = 5

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How sure a fit is of what its law says elsewhere."""

    covariance: Array  # [K, K]; 0 for constants that the fit left at 0
    noise: float
    """Relative standard deviation of one reading."""

    def of(self, rows: Array) -> Array:
        """Standard error of the law at `rows` [..., K], without the noise of reading it there."""
        variance: Array = ((rows @ self.covariance) * rows).sum(axis=-1)
        deviation: Array = np.sqrt(np.maximum(variance, 0.0))
        return deviation


def uncertainty(rows: Sequence[Sequence[float]], readings: Sequence[float], constants: Sequence[float]) -> Uncertainty:
    """Of a fit by `fit_non_negative`: what least squares says of those constants that are not 0."""
    scaled = np.asarray(rows, dtype=float) / np.asarray(readings, dtype=float)[:, None]
    errors = np.abs(scaled @ np.asarray(constants) - 1)
    active = [j for j, constant in enumerate(constants) if constant > 0]
    spare = max(1, len(readings) - len(active))
    noise = max(1.4826 * float(np.median(errors)) * sqrt(len(readings) / spare), _QUIET)
    covariance = np.zeros((len(constants), len(constants)))
    inverse = np.linalg.pinv(scaled[:, active], rcond=1e-9)
    covariance[np.ix_(active, active)] = noise**2 * (inverse @ inverse.T)
    return Uncertainty(covariance, noise)


def fit_non_negative(rows: Sequence[Sequence[float]], readings: Sequence[float]) -> tuple[float, ...]:
    """Constants c >= 0 that bring rows x c nearest to the readings, by relative error; outliers count less.

    Of two proportional columns the earlier gets all of the constant.

    Args:
        readings: all > 0.
    """
    scaled = [[x / y for x in row] for row, y in zip(rows, readings, strict=True)]
    weights = [1.0] * len(scaled)
    constants: tuple[float, ...] = ()
    for _ in range(_ROUNDS):
        weighted = [[w * x for x in row] for w, row in zip(weights, scaled, strict=True)]
        constants = solve_non_negative(weighted, weights)
        errors = [abs(sum(x * c for x, c in zip(row, constants, strict=True)) - 1) for row in scaled]
        limit = _HUBER * max(1.4826 * median(errors), _QUIET)
        weights = [1.0 if error <= limit else sqrt(limit / error) for error in errors]
    return constants


def solve_non_negative(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> tuple[float, ...]:
    """argmin |rows x c - targets| over c >= 0, by active sets (Lawson and Hanson 1974, chapter 23)."""
    columns = range(len(rows[0]))
    norms = [sqrt(sum(row[j] ** 2 for row in rows)) or 1.0 for j in columns]
    unit = [[row[j] / norms[j] for j in columns] for row in rows]
    gram = [[sum(row[i] * row[j] for row in unit) for j in columns] for i in columns]
    moment = [sum(row[j] * y for row, y in zip(unit, targets, strict=True)) for j in columns]
    floor = 1e-9 * sqrt(sum(y * y for y in targets))
    found = [0.0] * len(columns)
    active: list[int] = []
    refused: set[int] = set()
    while True:
        pull = [moment[i] - sum(gram[i][j] * found[j] for j in active) for i in columns]
        entering = _steepest(pull, floor, refused.union(active))
        if entering is None:
            return tuple(c / norm for c, norm in zip(found, norms, strict=True))
        if not _enter(entering, active, found, gram, moment):
            refused.add(entering)


def _steepest(pull: Sequence[float], floor: float, taken: set[int]) -> int | None:
    best: int | None = None
    for j, value in enumerate(pull):
        if j not in taken and value > floor and (best is None or value > pull[best] * (1 + 1e-9)):
            best = j
    return best


def _enter(
    entering: int,
    active: list[int],
    found: list[float],
    gram: Sequence[Sequence[float]],
    moment: Sequence[float],
) -> bool:
    """Let one column in, and out again those that it turns negative. False, and nothing changed: it adds nothing."""
    wanted = _solve(gram, moment, [*active, entering])
    if wanted is None or wanted[-1] <= 0:
        return False
    active.append(entering)
    while min(wanted) <= 0:
        share = min(found[j] / (found[j] - w) for j, w in zip(active, wanted, strict=True) if w <= 0)
        for j, w in zip(active, wanted, strict=True):
            found[j] += share * (w - found[j])
        for j in [j for j in active if found[j] <= 1e-14]:
            found[j] = 0.0
            active.remove(j)
        solved = _solve(gram, moment, active)
        assert solved is not None, "a subset of independent columns is independent"
        wanted = solved
    for j, w in zip(active, wanted, strict=True):
        found[j] = w
    return True


def _solve(gram: Sequence[Sequence[float]], moment: Sequence[float], active: Sequence[int]) -> list[float] | None:
    """Least squares on the active columns by Cholesky; None where they are not independent."""
    size = len(active)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            left = gram[active[i]][active[j]] - sum(lower[i][k] * lower[j][k] for k in range(j))
            if i == j:
                if left < _SINGULAR:
                    return None
                lower[i][i] = sqrt(left)
            else:
                lower[i][j] = left / lower[j][j]
    forward: list[float] = []
    for i in range(size):
        forward.append((moment[active[i]] - sum(lower[i][k] * forward[k] for k in range(i))) / lower[i][i])
    solution = [0.0] * size
    for i in reversed(range(size)):
        solution[i] = (forward[i] - sum(lower[k][i] * solution[k] for k in range(i + 1, size))) / lower[i][i]
    return solution
