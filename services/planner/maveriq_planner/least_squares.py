"""Fits a law that is linear in non-negative constants to samples. Pure: feature rows and readings in, constants out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.optimize import nnls

from maveriq_planner.arrays import Array

_HUBER = 1.345  # 95 % of least squares' efficiency on clean data (Huber 1981)
_QUIET = 0.002  # repeats of one shape differ by 0.2 % at best; below that there are no outliers
_ROUNDS = 5


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

    Columns are brought to length 1 first. Of two proportional ones the earlier gets all of the constant.

    Args:
        readings: all > 0.
    """
    scaled = np.asarray(rows, dtype=float) / np.asarray(readings, dtype=float)[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0] = 1.0
    unit = scaled / norms
    weights, found = np.ones(len(unit)), np.zeros(unit.shape[1])
    for _ in range(_ROUNDS):
        found = nnls(unit * weights[:, None], weights, maxiter=100 * unit.shape[1])[0]
        errors = np.abs(unit @ found - 1)
        limit = _HUBER * max(1.4826 * float(np.median(errors)), _QUIET)
        weights = np.sqrt(np.minimum(1.0, limit / np.maximum(errors, 1e-12)))
    constants: list[float] = (found / norms).tolist()
    return tuple(constants)
