"""How many layers of each precision each GPU holds, where patterns are too many to list. Pure: HiGHS, through scipy.

Layers are alike but for their sensitivity, so that only the counts n[j, b] are whole numbers; which layer has which
precision, y[i, b], is a transportation problem, whose optimum is whole by itself:

    min  prefill_sum * sum P + prefill_longest * Pmax + decode_sum * sum D + decode_longest * Dmax + steps * S
         + theta * sum sensitivity[i, b] y[i, b]
    s.t. sum_b y[i, b] = 1, sum_i y[i, b] = sum_j n[j, b], sum_b n[j, b] >= 1, sum_b bytes[j, b] n[j, b] <= capacity[j],
         P[j] >= ends + sum_b ms[j, b] n[j, b], P[j] >= hop, Pmax >= P[j], the same for D, S >= groups Dmax, S >= sum D

Where a layer is does not matter to it, so that it is a lower bound. `realised` makes a split of the counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from maveriq_planner.quantizing.assigning import assign
from maveriq_planner.quantizing.pipeline import Array, Indices, Pipeline, Split, Stage

_MOST_ORDERS = 120  # of equal stages, tried when counts become a split
_INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True, slots=True)
class Counted:
    counts: Indices | None  # [N, B]
    """None: none was found below what was to be beaten."""
    bound: float
    """No split costs less; infinity: there is none."""


def count_layers(
    pipeline: Pipeline, tolerance: float, time_s: float, beat: float = np.inf, most_sensitivity: float | None = None
) -> Counted:
    """Args:
    tolerance: relative gap between the counts and the bound at which the search ends.
    beat: an objective without scale; only less is looked for.
    """
    rows = Rows(len(pipeline.stages), pipeline.num_layers, pipeline.sensitivity.shape[1])
    lost = rows.layers_at(np.arange(pipeline.num_layers), slice(None)).ravel()
    _of_stages(rows, pipeline)
    _of_layers(rows, pipeline)
    objective = _objective(rows, pipeline)
    if most_sensitivity is not None:
        rows.add(lost, pipeline.sensitivity.ravel(), high=most_sensitivity)
    if np.isfinite(beat):
        rows.add(np.flatnonzero(objective), objective[objective != 0], high=beat)
    low, high, whole = _bounds(rows, pipeline)
    solved = milp(
        objective, constraints=rows.constraint(), bounds=Bounds(low, high), integrality=whole,
        options={"mip_rel_gap": tolerance, "time_limit": time_s},
    )  # fmt: skip
    bound = -np.inf if solved.mip_dual_bound is None else float(solved.mip_dual_bound)
    if solved.x is None:
        return Counted(None, beat if solved.status == _INFEASIBLE else bound)
    counts = np.rint(solved.x[: rows.num_counts]).astype(np.intp).reshape(rows.num_stages, -1)
    return Counted(counts, bound)


def realised(pipeline: Pipeline, counts: Indices) -> Split:
    """The least sensitive split with these counts: one assignment a segment, equal stages in the best order."""
    best: tuple[float, Split] | None = None
    for order in _orders(pipeline.stages, counts):
        start, total, held = 0, 0.0, list[int]()
        for row in counts[list(order)]:
            lost, chosen = assign(pipeline.sensitivity[start : start + row.sum()], row)
            start, total, held = start + int(row.sum()), total + lost, held + chosen
        if best is None or total < best[0]:
            best = (total, Split(tuple(int(n) for n in counts[list(order)].sum(axis=1)), tuple(held)))
    assert best is not None, "there is always the order that is"
    return best[1]


@dataclass(slots=True)
class Rows:
    """Constraints as they are written down. Columns: n, P, D, Pmax, Dmax, S, u (a stage's one precision), y."""

    num_stages: int
    num_layers: int
    num_precisions: int
    _data: list[Array] = field(default_factory=list[Array])
    _columns: list[Indices] = field(default_factory=list[Indices])
    _low: list[float] = field(default_factory=list[float])
    _high: list[float] = field(default_factory=list[float])

    @property
    def num_counts(self) -> int:
        return self.num_stages * self.num_precisions

    @property
    def prefill(self) -> Indices:
        return self.num_counts + np.arange(self.num_stages)

    @property
    def decode(self) -> Indices:
        return self.prefill + self.num_stages

    @property
    def longest(self) -> Indices:
        """Pmax, Dmax, S."""
        return self.num_counts + 2 * self.num_stages + np.arange(3)

    @property
    def num_columns(self) -> int:
        return 2 * self.num_counts + 2 * self.num_stages + 3 + self.num_layers * self.num_precisions

    def counts_of(self, stage: int) -> Indices:
        return np.arange(stage * self.num_precisions, (stage + 1) * self.num_precisions)

    def chosen_of(self, stage: int) -> Indices:
        return np.asarray(self.longest[-1] + 1 + self.counts_of(stage), dtype=np.intp)

    def layers_at(self, layers: Indices, precision: int | slice) -> Indices:
        begin = self.longest[-1] + 1 + self.num_counts
        every = begin + layers[:, None] * self.num_precisions + np.arange(self.num_precisions)
        return np.asarray(every[:, precision], dtype=np.intp)

    def add(
        self, columns: Indices, values: Array | Sequence[float], low: float = -np.inf, high: float = np.inf
    ) -> None:
        self._columns.append(columns)
        self._data.append(np.asarray(values, dtype=float))
        self._low.append(low)
        self._high.append(high)

    def constraint(self) -> LinearConstraint:
        ends = np.cumsum([0, *(len(columns) for columns in self._columns)])
        parts = (np.concatenate(self._data), np.concatenate(self._columns), ends)
        matrix = csr_array(parts, shape=(len(self._low), self.num_columns))
        return LinearConstraint(matrix, np.array(self._low), np.array(self._high))


def _of_stages(rows: Rows, pipeline: Pipeline) -> None:
    ones = np.ones(rows.num_precisions)
    prefill_max, decode_max, step = rows.longest
    for j, stage in enumerate(pipeline.stages):
        counts = rows.counts_of(j)
        rows.add(counts, ones, low=1)
        rows.add(counts, stage.layer_bytes, high=stage.capacity_bytes)
        for own, ms, ends in ((rows.prefill[j], stage.prefill_ms, stage.prefill_ends_ms),
                              (rows.decode[j], stage.decode_ms, stage.decode_ends_ms)):  # fmt: skip
            rows.add(np.append(counts, own), [*(-each for each in np.where(np.isfinite(ms), ms, 0.0)), 1.0], low=ends)
        rows.add(np.array([prefill_max, rows.prefill[j]]), [1.0, -1.0], low=0)
        rows.add(np.array([decode_max, rows.decode[j]]), [1.0, -1.0], low=0)
        if pipeline.uniform_stages:
            rows.add(rows.chosen_of(j), ones, high=1)
            for count, chosen in zip(counts, rows.chosen_of(j), strict=True):
                rows.add(np.array([count, chosen]), [1.0, -float(rows.num_layers)], high=0)
    rows.add(np.array([step, decode_max]), [1.0, -float(pipeline.weights.groups)], low=0)
    rows.add(np.append(rows.decode, step), [*(-1.0 for _ in rows.decode), 1.0], low=0)
    for one, other in _equal_neighbours(pipeline.stages):  # of stages that differ in nothing, the first holds most
        rows.add(np.append(rows.counts_of(one), rows.counts_of(other)), [*ones, *-ones], low=0)


def _of_layers(rows: Rows, pipeline: Pipeline) -> None:
    layers = np.arange(pipeline.num_layers)
    for layer in layers:
        rows.add(rows.layers_at(layers[layer : layer + 1], slice(None))[0], np.ones(rows.num_precisions), 1, 1)
    for b in range(rows.num_precisions):
        held = np.array([rows.counts_of(j)[b] for j in range(rows.num_stages)])
        values = np.concatenate([np.ones(len(layers)), -np.ones(len(held))])
        rows.add(np.append(rows.layers_at(layers, b), held), values, 0, 0)


def _objective(rows: Rows, pipeline: Pipeline) -> Array:
    w = pipeline.weights
    objective = np.zeros(rows.num_columns)
    objective[rows.prefill] = w.prefill_sum
    objective[rows.decode] = w.decode_sum
    objective[rows.longest] = [w.prefill_longest, w.decode_longest, w.steps]
    every = rows.layers_at(np.arange(pipeline.num_layers), slice(None)).ravel()
    objective[every] = w.theta * pipeline.sensitivity.ravel()
    return objective


def _bounds(rows: Rows, pipeline: Pipeline) -> tuple[Array, Array, Indices]:
    """Low, high, and 1 for what is a whole number."""
    low, high = np.zeros(rows.num_columns), np.full(rows.num_columns, np.inf)
    whole = np.zeros(rows.num_columns, dtype=np.intp)
    high[: rows.num_counts] = pipeline.num_layers
    whole[: rows.num_counts] = 1
    for j, stage in enumerate(pipeline.stages):
        runs = np.isfinite(np.add(stage.prefill_ms, stage.decode_ms))
        high[rows.counts_of(j)[~runs]] = 0
        low[rows.prefill[j]], low[rows.decode[j]] = stage.prefill_hop_ms, stage.decode_hop_ms
        high[rows.chosen_of(j)] = 1.0 if pipeline.uniform_stages else 0.0
        whole[rows.chosen_of(j)] = 1
    every = rows.layers_at(np.arange(pipeline.num_layers), slice(None)).ravel()
    high[every] = 1
    return low, high, whole


def _equal_neighbours(stages: Sequence[Stage]) -> Iterator[tuple[int, int]]:
    last: dict[tuple[object, ...], int] = {}
    for j, stage in enumerate(stages):
        key = stage.numbers
        if key in last:
            yield last[key], j
        last[key] = j


def _orders(stages: Sequence[Stage], counts: Indices) -> Iterator[tuple[int, ...]]:
    """As they are, then stages that differ in nothing in other orders."""
    equal = [j for j in range(len(stages)) if stages[j].numbers == stages[len(stages) // 2].numbers]
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for order in islice(permutations(equal), _MOST_ORDERS):
        places = list(range(len(stages)))
        for place, j in zip(equal, order, strict=True):
            places[place] = j
        key = tuple(tuple(int(n) for n in counts[j]) for j in places)
        if key not in seen:
            seen.add(key)
            yield tuple(places)
