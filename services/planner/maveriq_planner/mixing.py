"""With which GPU types a candidate's replica may be mixed. Pure: judged configurations in, types and speeds out.

A pipeline of unequal GPUs is no slower than one of its slowest type, and an allocator gives each stage the bytes that
the candidate says. So a type joins where the same configuration in as many replicas keeps the SLO and the budget too,
and takes no more memory: any mix then keeps them. The candidate on the type that takes most can be mixed with all.
"""

import numpy as np

from maveriq.contracts import Intent
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
    speeds = _LayerSpeeds(c, intent)
    found: dict[int, Speeds] = {}
    for one, another in zip(own.tolist(), other.tolist(), strict=True):
        mine, ms = speeds.of(one), speeds.of(another)
        if mine is not None and ms is not None:
            found.setdefault(one, [(c.kind(one).gpu_type, mine)]).append((c.kind(another).gpu_type, ms))
    return found


def _configurations(c: Columns) -> Indices:
    """One number for each configuration but for its GPU type."""
    kinds = [estimator.kind for estimator in c.estimators]
    names = [(kind.engine, kind.variant.label, kind.kv_precision) for kind in kinds]
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


class _LayerSpeeds:
    """Asks each estimator once for each TP degree."""

    def __init__(self, columns: Columns, intent: Intent) -> None:
        self._columns, self._workload = columns, intent.workload
        self._grid = columns.replicas.curves.grid.points
        self._known: dict[tuple[int, int], Array | None] = {}

    def of(self, i: int) -> float | None:
        """None: the method knows no layers."""
        c = self._columns
        which, tp = int(c.which[i]), int(c.tp[i])
        if (which, tp) not in self._known:
            estimator = c.estimators[which]
            pps = np.arange(1.0, c.pp[c.which == which].max() + 1)
            times = estimator.times(tp, pps, batches_known(self._grid, estimator), self._workload)
            self._known[which, tp] = times.layer_ms
        layer_ms = self._known[which, tp]
        if layer_ms is None:
            return None
        return float(layer_ms[c.pp[i] - 1, np.searchsorted(self._grid, c.slots[i])])
