"""Talks to HiGHS through highspy, its own package; the only file that imports it.

scipy's `milp` has the same solver behind it (1.12 in scipy 1.17), but cannot solve a relaxation again from where it
was, and that version prints a line of its own to standard output, amid our JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from maveriq_planner.provisioning.problem import Array, Model

Row = Array
"""Of the whole columns: row x columns >= 1."""
_RELAXED: dict[str, float | str] = {
    "presolve": "off",
    "solver": "simplex",
    "simplex_dual_edge_weight_strategy": 1,  # Devex: a third faster than the default on small models solved often
}
_SOLVED = highspy.HighsModelStatus.kOptimal


@dataclass(frozen=True, slots=True)
class Point:
    objective: float
    whole: Array
    """The columns that must be whole, not rounded."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search with a time limit came to."""

    best: Point | None
    bound: float
    """No point is cheaper."""


class Relaxation:
    """A model whose whole numbers may be broken; solved again and again with other bounds, each time from the last."""

    def __init__(self, model: Model) -> None:
        self._whole = np.arange(model.num_whole, dtype=np.int32)
        self._solver = _solver(**_RELAXED)
        self._solver.passModel(_lp(model))

    def add(self, rows: Sequence[Row]) -> None:
        _add(self._solver, rows)

    def solve(self, lower: Array, upper: Array) -> Point | None:
        """Within bounds of the whole columns; None: there is nothing."""
        self._solver.changeColsBounds(len(self._whole), self._whole, lower, upper)
        self._solver.run()
        if self._solver.getModelStatus() != _SOLVED:
            return None
        values = self._solver.getSolution().col_value[: len(self._whole)]
        return Point(self._solver.getObjectiveValue(), np.array(values))


@dataclass(frozen=True, slots=True)
class Minimum:
    objective: float
    values: Array
    duals: Array
    """Of rows."""


def minimum(model: Model) -> Minimum | None:
    """Of a plain linear programme."""
    solver = _solver(**_RELAXED)
    solver.passModel(_lp(model))
    solver.run()
    if solver.getModelStatus() != _SOLVED:
        return None
    found = solver.getSolution()
    return Minimum(solver.getObjectiveValue(), np.array(found.col_value), np.array(found.row_dual))


def search(model: Model, time_limit_s: float, start: Array | None, rows: Sequence[Row]) -> Found:
    """HiGHS's own branch and bound.

    Args:
        start: whole columns of a point that is known to do.
        rows: that must hold besides.
    """
    solver = _solver(mip_rel_gap=0.0, time_limit=max(time_limit_s, 1e-3))
    lp = _lp(model)
    whole, broken = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    lp.integrality_ = [whole] * model.num_whole + [broken] * (len(model.cost) - model.num_whole)
    solver.passModel(lp)
    _add(solver, rows)
    if start is not None:
        solver.setSolution(len(start), np.arange(len(start), dtype=np.int32), start)
    solver.run()
    told = solver.getInfo()
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return Found(None, np.inf)
    if not np.isfinite(told.objective_function_value) or told.primal_solution_status != 2:
        return Found(None, told.mip_dual_bound)
    values = np.array(solver.getSolution().col_value[: model.num_whole])
    return Found(Point(told.objective_function_value, values), told.mip_dual_bound)


def _add(solver: highspy.Highs, rows: Sequence[Row]) -> None:
    for row in rows:
        used = np.flatnonzero(row).astype(np.int32)
        solver.addRow(1.0, np.inf, len(used), used, row[used])


def _solver(**options: float | str) -> highspy.Highs:
    solver: highspy.Highs = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    return solver


def _lp(model: Model) -> highspy.HighsLp:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(model.cost), len(model.row_lower)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = model.cost, np.zeros(len(model.cost)), model.upper
    lp.row_lower_, lp.row_upper_ = model.row_lower, model.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = model.begins, model.rows, model.values
    return lp
