"""Whether a fleet does what it is said to. Pure: problem, counts and shares in, what is wrong out.

Plain sums over what is to be rented and routed; it shares no line with what found them, and no solver.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from maveriq_planner.provisioning.problem import Array, Problem

TOLERANCE = 1e-6  # of one unit's time


def violations(problem: Problem, counts: Array, shares: Array, after_loss: Mapping[int, Array]) -> Iterator[str]:
    """What is wrong, one sentence each.

    Args:
        after_loss: shares after one unit of a kind was lost, by kind; looked at with spares only.
    """
    if (counts != np.floor(counts)).any() or (counts < 0).any():
        yield "a count is no whole number"
    for pool, cap in enumerate(problem.caps):
        rented = counts[problem.pools == pool].sum()
        if rented > cap:
            yield f"{rented:g} are rented of what there are {cap:g}"
    yield from _served(problem, counts, shares, "")
    if not problem.spare:
        return
    for unit in np.flatnonzero(counts > 0).tolist():
        if unit not in after_loss:
            yield f"nothing says who serves when one of kind {unit} is lost"
            continue
        left = counts.copy()
        left[unit] -= 1
        yield from _served(problem, left, after_loss[unit], f" after the loss of one of kind {unit}")


def _served(problem: Problem, counts: Array, shares: Array, when: str) -> Iterator[str]:
    if (shares < 0).any():
        yield f"a share is negative{when}"
    for bucket in np.flatnonzero(np.abs(shares.sum(axis=0) - 1) > TOLERANCE).tolist():
        yield f"bucket {bucket} is served to {shares[:, bucket].sum():.6f}{when}"
    if (np.isinf(problem.load) & (shares > 0)).any():
        yield f"a bucket goes to a unit that cannot serve it{when}"
        return
    load = np.where(shares > 0, problem.load, 0.0) * shares
    for unit, busy in enumerate(load.sum(axis=1).tolist()):
        if busy > counts[unit] * (1 + TOLERANCE) + TOLERANCE * (counts[unit] > 0):
            yield f"{counts[unit]:g} of kind {unit} are to do the work of {busy:g}{when}"
