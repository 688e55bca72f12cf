"""Robust fit of non-negative constants. Pure: rows and readings in, constants with their covariance out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

_HUBER = 1.345  # 95 % of least squares' efficiency on clean data (Huber 1981)
_ROUNDS = 10
_SAME = 1e-9  # two columns of length 1 that differ by less than its root say the same


@dataclass(frozen=True, slots=True)
class Fitted:
    """Constants in the order of the columns; a column that no row uses has 0."""

    constants: Array
    covariance: Array
    """0 where the constant is 0: nothing is known below it."""


def fit_robust(rows: Array, readings: Array, deviations: Array, ridge: Sequence[float], *, quiet: float) -> Fitted:
    """argmin |(rows c - readings) / deviations| over c >= 0, in which outliers count less.

    Lawson and Hanson 1974, chapter 23; Huber 1981. Columns are brought to length 1 first, so a ridge is comparable.

    Args:
        deviations: standard deviation that each reading is thought to have.
        ridge: of each column: how much it costs to use it beside another that says the same; 0 is free.
        quiet: residuals below so many deviations are never outliers.
    """
    scaled, wanted = rows / deviations[:, None], readings / deviations
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0] = 1.0
    unit = scaled / norms
    penalty = np.diag(np.asarray(ridge))
    weights = np.ones(len(wanted))
    found, noise = np.zeros(unit.shape[1]), 1.0
    for _ in range(_ROUNDS):
        found = _solve(unit * weights[:, None], wanted * weights, penalty)
        misses = np.abs(unit @ found - wanted)
        noise = max(1.4826 * float(np.median(misses)), quiet)
        weights = np.sqrt(np.minimum(1.0, _HUBER * noise / np.maximum(misses, 1e-12)))
    covariance = _covariance(unit * weights[:, None], penalty, found, noise)
    return Fitted(found / norms, covariance / np.outer(norms, norms))


def _solve(rows: Array, wanted: Array, penalty: Array) -> Array:
    """By the Cholesky factor of the normal equations: its cost does not grow with the rows.

    The columns are of length 1, so what they lose in precision is far below any reading's noise; two that say the
    same share their constant.
    """
    gram = rows.T @ rows + penalty**2 + _SAME * np.eye(rows.shape[1])
    lower = np.linalg.cholesky(gram)
    solution: Array = nnls(lower.T, np.linalg.solve(lower, rows.T @ wanted), maxiter=100 * rows.shape[1])[0]
    return solution


def _covariance(rows: Array, penalty: Array, found: Array, noise: float) -> Array:
    active = np.flatnonzero(found > 0)
    whole = np.zeros((len(found), len(found)))
    if len(active):
        gram = rows[:, active].T @ rows[:, active] + (penalty**2)[np.ix_(active, active)]
        whole[np.ix_(active, active)] = noise**2 * np.linalg.inv(gram + _SAME * np.eye(len(active)))
    return whole
