"""Which nodes can hold a replica, and what it would cost there at least. Pure: a fleet in, one key a node out.

All nodes of a fleet at once, in numpy: packing each of a thousand nodes takes seconds, this a few milliseconds.
Whether a node holds it is exact. What it would cost there is a lower bound, so that the packings worth a look come
first and the others are left out with proof: close where the ways to choose a node's GPUs are few enough to try them
all (eight GPUs: always), and exact on the nodes that come first for tp = 1 and GPUs of one speed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import comb

import numpy as np

from maveriq.contracts import StageMemory, Strategy
from maveriq_allocator.fleet import Flags, Fleet, Ints
from maveriq_allocator.packing import NS_PER_MS
from maveriq_allocator.selection import NEVER

MAX_WAYS = 2**18  # nodes x ways to choose GPUs that are bounded: a few milliseconds
MAX_EXACT_WAYS = 2**13  # that are tried exactly
_TOO_MANY = 2**40  # layers lost where a GPU cannot be an end

Key = tuple[int, int, int]
"""What joins ranks (`packing.Joined`), ns of all layers, cost of GPUs and node: the best placement has the least."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one replica."""

    memory: StageMemory
    num_layers: int
    pp: int
    tp: int
    most_layers: int
    """Of one stage."""

    @property
    def least_bytes(self) -> int:
        """That a GPU must have free to hold anything of it."""
        alone = self.pp == 1
        return self.memory.of_stage(self.num_layers if alone else 1, first=alone, last=alone)

    @property
    def needed_bytes(self) -> int:
        """On all its GPUs together."""
        if self.pp == 1:
            return self.tp * self.memory.of_stage(self.num_layers, first=True, last=True)
        total = self.pp * self.memory.runtime_bytes + self.num_layers * self.memory.layer_bytes
        return self.tp * (total + self.memory.first_bytes + self.memory.last_bytes)


class Screen:
    """A shape on each node of a fleet."""

    def __init__(self, fleet: Fleet, shape: Shape, speeds: Mapping[str, float] | None) -> None:
        """Args:
        speeds: ms per layer of each type of the fleet; None: all are equally fast.
        """
        self._fleet, self._shape = fleet, shape
        self._joined: Ints = np.zeros(len(fleet.nodes), dtype=np.int64)
        if shape.tp > 1:
            self._joined = (fleet.num_reached() < shape.tp - 1).sum(axis=0)
        self._layer_ns = [0 if speeds is None else round(speeds[name] * NS_PER_MS) for name in fleet.types]
        self._costs = np.full(len(fleet.nodes), NEVER, dtype=np.int64)
        self._ns = np.zeros(len(fleet.nodes), dtype=np.int64)
        self._most = np.zeros(len(fleet.nodes), dtype=np.int64)
        self._tight = np.zeros(len(fleet.nodes), dtype=np.bool_)
        self.num_tried = 0
        """Ways to choose GPUs that were tried one by one so far."""
        self.update(fleet, np.arange(len(fleet.nodes)))

    def update(self, fleet: Fleet, changed: Ints) -> None:
        """The fleet is now this one, which differs in the nodes `changed`."""
        self._fleet = fleet
        self._costs[changed] = NEVER
        self._tight[changed] = False
        self._most[changed] = 0
        shape = self._shape
        num_gpus = shape.pp * shape.tp
        if not len(changed) or fleet.width < num_gpus or shape.pp > shape.num_layers:
            return
        poorest = fleet.poorest_ranks(changed, shape.tp)
        if poorest.shape[1] < shape.pp:
            return
        fitting = changed[holds(shape, poorest[:, : shape.pp])]
        fitting = fitting[fleet.spare_bytes[fitting] >= shape.needed_bytes]
        if len(fitting):
            self._ns[fitting] = self._least_ns(fitting)
            self._costs[fitting] = self._least_costs(fitting)
            self._most[fitting] = self._most_beside(fitting)

    def promising(self) -> list[int]:
        """Nodes that hold a replica, the best bound first."""
        order = self._order()
        num_ways = self._num_ways() if self._neighbours_are_cheapest else 0
        closer = order[: MAX_EXACT_WAYS // num_ways] if num_ways else order[:0]
        closer = closer[~self._tight[closer]]
        if len(closer):
            self._costs[closer] = np.maximum(self._costs[closer], self._tried(closer))
            self._tight[closer] = True
            self.num_tried += len(closer) * num_ways
            order = self._order()
        return [int(index) for index in order]

    def fitting(self) -> list[int]:
        """The same, by bounds that are not as close."""
        return [int(index) for index in self._order()]

    def most_replicas(self) -> int:
        """No more fit on the fleet side by side."""
        alone = int(self._most[~self._fleet.spanning].sum())
        return alone + int(self._fleet.free_bytes[self._fleet.spanning].sum()) // self._shape.needed_bytes

    def most_on(self, index: int) -> int:
        """No more fit on this node side by side: by bytes, and by GPUs that can hold a stage, however shared."""
        return int(self._most[index])

    def bound(self, index: int) -> Key:
        """No placement on this node is better."""
        return int(self._joined[index]), int(self._ns[index]), int(self._costs[index]) + self.node_cost(index)

    def least(self) -> Key:
        """No placement on any node that holds a replica is below it in anything."""
        there = np.flatnonzero(self._costs < NEVER)
        costs = self._costs[there] + self._fleet.node_costs(there)
        return int(self._joined[there].min()), int(self._ns[there].min()), int(costs.min())

    def node_cost(self, index: int) -> int:
        return int(self._fleet.node_costs(np.array([index]))[0])

    def _order(self) -> Ints:
        fleet = self._fleet
        fitting = np.flatnonzero(self._costs < NEVER)
        keys = (self._costs[fitting] + fleet.node_costs(fitting), self._ns[fitting], self._joined[fitting])
        order: Ints = fitting[np.lexsort(keys)]
        return order

    def _num_ways(self) -> int:
        shape = self._shape
        return comb(max(0, self._fleet.width - shape.pp * (shape.tp - 1)), shape.pp)

    @property
    def _neighbours_are_cheapest(self) -> bool:
        """Where cheaper GPUs are poorer ones, the cheapest ranks of a stage are neighbours."""
        return self._shape.tp == 1 or self._fleet.preference.strategy is Strategy.BEST_FIT

    def _most_beside(self, rows: Ints) -> Ints:
        shape, fleet = self._shape, self._fleet
        ranks = np.maximum(fleet.free[rows], 0) // shape.least_bytes
        room = np.minimum(fleet.free_bytes[rows], fleet.spare_bytes[rows])
        most: Ints = np.minimum(room // shape.needed_bytes, ranks.sum(axis=1) // (shape.pp * shape.tp))
        return most

    def _least_ns(self, rows: Ints) -> Ints:
        """As if each type's GPUs held all that their richest do without the ends: the fastest layers first."""
        shape, fleet = self._shape, self._fleet
        if len(set(self._layer_ns)) == 1:
            return np.full(len(rows), shape.num_layers * self._layer_ns[0], dtype=np.int64)
        least = np.zeros(len(rows), dtype=np.int64)
        placed, ready, stages = least.copy(), least.copy(), least.copy()
        for layer_ns, kind in sorted((ns, kind) for kind, ns in enumerate(self._layer_ns)):
            room = _capacities(shape, fleet.poorest_ranks_of(kind, rows, shape.tp), first=False, last=False)
            room = np.maximum(room[:, : shape.pp], 0)
            ready = ready + room.sum(axis=1)
            stages = np.minimum(stages + (room > 0).sum(axis=1), shape.pp)
            now = np.minimum(ready, shape.num_layers - (shape.pp - stages))  # one layer for each other stage
            least += np.maximum(now - placed, 0) * layer_ns
            placed = np.maximum(placed, now)
        return least

    def _least_costs(self, rows: Ints) -> Ints:
        few = self._num_ways() * len(rows) <= MAX_WAYS
        return self._of_all_ways(rows) if few and self._neighbours_are_cheapest else self._of_the_cheapest(rows)

    def _of_the_cheapest(self, rows: Ints) -> Ints:
        """No GPUs that can hold something cost less together, nor do any that have as many bytes as needed."""
        shape, fleet = self._shape, self._fleet
        num_gpus = shape.pp * shape.tp
        usable = fleet.free[rows] >= shape.least_bytes
        costs = np.where(usable, fleet.costs[rows], NEVER // fleet.width)
        cheapest: Ints = np.partition(costs, num_gpus - 1, axis=1)[:, :num_gpus].sum(axis=1)
        least: Ints = np.maximum(cheapest, fleet.preference.at_least(np.array(shape.needed_bytes)))
        return least

    def _of_all_ways(self, rows: Ints) -> Ints:
        """As if the ends took room wherever there is some to spare."""
        shape, fleet = self._shape, self._fleet
        ways = _ways(fleet.width, shape.pp, shape.tp)
        alone = shape.pp == 1
        needed = shape.num_layers
        if not alone and shape.most_layers >= shape.num_layers:
            needed += max(0, (shape.memory.first_bytes + shape.memory.last_bytes) // shape.memory.layer_bytes - 1)
            shape = replace(shape, most_layers=needed)  # an end takes room beyond the layers that a stage may have
        layers = _capacities(shape, fleet.free[rows, shape.tp - 1 :], first=alone, last=alone)
        layers = np.where(layers >= 1, layers, -_TOO_MANY)
        costs = fleet.neighbour_costs(rows, shape.tp)
        chosen = np.zeros((layers.shape[1], len(ways)))
        chosen[ways, np.arange(len(ways))[:, None]] = 1.0
        held = layers.astype(np.float64) @ chosen >= needed  # floats multiply faster: costs to a KiB, layers exactly
        way = np.where(held, costs.astype(np.float64) @ chosen, np.inf).argmin(axis=1)
        least: Ints = np.take_along_axis(costs, ways[way], axis=1).sum(axis=1)
        return least

    def _tried(self, rows: Ints) -> Ints:
        shape, fleet = self._shape, self._fleet
        ways = _ways(fleet.width, shape.pp, shape.tp)
        held = holds(shape, fleet.free[rows][:, ways + shape.tp - 1])
        costs = fleet.neighbour_costs(rows, shape.tp)[:, ways].sum(axis=2)
        least: Ints = np.where(held, costs, NEVER).min(axis=1)
        return least


@cache
def _ways(num_gpus: int, pp: int, tp: int) -> Ints:
    """All ways to cut `pp` blocks of `tp` neighbours: the first of each block, [ways, pp]."""
    ways = np.array(list(combinations(range(num_gpus - pp * (tp - 1)), pp)), dtype=np.int64)
    return ways + np.arange(pp) * (tp - 1)


def holds(shape: Shape, poorest: Ints) -> Flags:
    """Whether stages on GPUs with so many bytes free hold the model, whichever come first and last.

    Args:
        poorest: free bytes of the poorest rank of each stage, [..., pp].
    """
    if shape.pp == 1:
        fits: Flags = _capacities(shape, poorest, first=True, last=True)[..., 0] >= shape.num_layers
        return fits
    middle = _capacities(shape, poorest, first=False, last=False)
    lost_first = _lost(middle, _capacities(shape, poorest, first=True, last=False))
    lost_last = _lost(middle, _capacities(shape, poorest, first=False, last=True))
    best = lost_last.argmin(axis=-1)[..., None]
    is_best = np.arange(shape.pp) == best
    second: Ints = np.where(is_best, _TOO_MANY, lost_last).min(axis=-1, keepdims=True)
    another: Ints = np.where(is_best, second, lost_last.min(axis=-1, keepdims=True))  # the end is not the beginning
    layers: Ints = middle.sum(axis=-1) - (lost_first + another).min(axis=-1)
    held: Flags = (middle.min(axis=-1) >= 1) & (layers >= shape.num_layers)
    return held


def _capacities(shape: Shape, free_bytes: Ints, *, first: bool, last: bool) -> Ints:
    fixed_bytes = shape.memory.of_stage(0, first=first, last=last)
    return np.minimum((free_bytes - fixed_bytes) // shape.memory.layer_bytes, shape.most_layers)


def _lost(middle: Ints, end: Ints) -> Ints:
    """Layers that an end leaves no room for."""
    return np.where(end >= 1, middle - end, _TOO_MANY)
