"""With which GPU types a candidate's replica may be mixed. Pure: judged configurations in, types and speeds out.

A pipeline of unequal GPUs is no slower than one of its slowest type, and an allocator gives each stage the bytes that
the candidate says. So a type joins where the same configuration in as many replicas keeps the SLO and the budget too,
and takes no more memory: any mix then keeps them. The candidate on the type that takes most can be mixed with all.
"""

import numpy as np

from maveriq.contracts import Workload
from maveriq_planner.arrays import Array, Flags, Indices
from maveriq_planner.columns import Columns, batches_known
from maveriq_planner.constraints import affordable
from maveriq_planner.replicas import does
from maveriq_planner.search import Judged

Speeds = list[tuple[str, float]]
"""GPU types, the candidate's own first, and ms of one layer in a decode step at the candidate's batch."""


def mixable(judged: Judged, chosen: Indices) -> dict[int, Speeds]:
    """Of those of `chosen` that meet the intent and can be mixed at all."""
    c, intent = judged.columns, judged.intent
    pipelined = chosen[c.pp[chosen] > 1]
    own, other = _pairs(_configurations(c), pipelined)
    keeps = _no_larger(c, own, other) & affordable(intent, c.price_per_hour[other] * judged.replicas[own])
    own, other = own[keeps], other[keeps]
    keeps = does(intent, c.replicas.take(other), judged.replicas[own])
    own, other = own[keeps], other[keeps]
    own_ms, other_ms = _layer_ms(c, own, intent.workload), _layer_ms(c, other, intent.workload)
    names = [estimator.kind.gpu_type for estimator in c.estimators]
    found: dict[int, Speeds] = {}
    for i, mine, theirs, mine_ms, theirs_ms in zip(
        own.tolist(), c.which[own].tolist(), c.which[other].tolist(), own_ms.tolist(), other_ms.tolist(), strict=True
    ):
        if mine_ms == mine_ms and theirs_ms == theirs_ms:  # NaN: the method knows no layers
            found.setdefault(i, [(names[int(mine)], mine_ms)]).append((names[int(theirs)], theirs_ms))
    return found


def _configurations(c: Columns) -> Indices:
    """One number for each configuration but for its GPU type."""
    kinds = [estimator.kind for estimator in c.estimators]
    names = [(kind.engine, kind.variant.label, kind.kv_precision, kind.segments) for kind in kinds]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    found = np.array([numbers[name] for name in names], dtype=np.intp)[c.which]
    for part in (c.tp, c.pp, c.slots):
        found = found * (part.max() + 1) + part
    return found


def _pairs(keys: Indices, chosen: Indices) -> tuple[Indices, Indices]:
    """Each of `chosen` beside each other row with its key."""
    order = np.argsort(keys, kind="stable")
    ascending = keys[order]
    start, end = (np.searchsorted(ascending, keys[chosen], side=side) for side in ("left", "right"))
    count = end - start
    own = np.repeat(chosen, count)
    other = order[np.repeat(start - np.cumsum(count) + count, count) + np.arange(len(own))]
    return own[own != other], other[own != other]


def _no_larger(c: Columns, own: Indices, other: Indices) -> Flags:
    sizes: tuple[Array, ...] = (c.layer_bytes, c.first_bytes, c.last_bytes, c.runtime_bytes)
    fits: Flags = c.tied_saving_bytes[other] >= c.tied_saving_bytes[own]
    for each in sizes:
        fits &= each[other] <= each[own]
    return fits


def _layer_ms(c: Columns, rows: Indices, workload: Workload) -> Array:
    """In a decode step with every slot taken; each estimator is asked once for each TP degree."""
    grid = c.replicas.curves.grid.points
    which, tp, at_pp, at_batch = c.which[rows], c.tp[rows], c.pp[rows] - 1, np.searchsorted(grid, c.slots[rows])
    found = np.full(len(rows), np.nan)
    asked = which * (tp.max(initial=0) + 1) + tp
    for one in np.unique(asked).tolist():
        mine = np.flatnonzero(asked == one)
        first = int(mine[0])
        estimator = c.estimators[int(which[first])]
        pps = np.arange(1.0, at_pp[mine].max() + 2)
        layer_ms = estimator.times(int(tp[first]), pps, batches_known(grid, estimator), workload).layer_ms
        if layer_ms is not None:
            found[mine] = layer_ms[at_pp[mine], at_batch[mine]]
    return found
