"""How unsure the times of a few configurations are. Pure: columns in, relative standard errors out."""

import numpy as np

from maveriq.contracts import Workload, others_error
from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.columns import Columns, batches_known


def errors_of(columns: Columns, chosen: Indices, workload: Workload) -> tuple[Array, Array]:
    """Of prompts [C] and of steps [C, G]; each estimator is asked once for each TP degree."""
    grid = columns.replicas.curves.grid.points
    _, firsts, place = np.unique(columns.replicas.row[chosen], return_index=True, return_inverse=True)
    rows = chosen[firsts]  # in the order of estimators, TP and PP degrees
    prefill, step = np.empty(len(rows)), np.empty((len(rows), len(grid)))
    which, tp, pp = columns.which[rows], columns.tp[rows], columns.pp[rows].astype(float)
    differs: Flags = (which[1:] != which[:-1]) | (tp[1:] != tp[:-1])
    ends = np.flatnonzero(differs) + 1
    for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(rows)], strict=True):
        estimator = columns.estimators[int(which[start])]
        batches = batches_known(grid, estimator)
        errors = estimator.errors(int(tp[start]), pp[start:end], batches, workload)
        disturbed = others_error(estimator.others)
        prefill[start:end], step[start:end] = np.hypot(errors.prefill, disturbed), np.hypot(errors.step, disturbed)
    return prefill[place], step[place]
