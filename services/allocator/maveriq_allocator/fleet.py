"""The GPUs of a fleet as arrays. Pure: nodes in, what is free on each and what it costs out."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import attrgetter

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from maveriq.contracts import Stage
from maveriq_allocator.packing import Fragment
from maveriq_allocator.strategies import Preference

_ABSENT = -1  # free bytes where a node has fewer GPUs than others
_ANY = 2**62  # bytes, where no headroom is kept

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Node:
    """What is free on one node that runs one engine."""

    name: str
    engine: str
    fragments: tuple[Fragment, ...]
    spans_nodes: bool = False
    """Its engine runs one replica's stages on several such nodes."""
    headroom_bytes: int = 0
    """That stay free on its GPUs together, whichever these are."""

    @property
    def spare_bytes(self) -> int:
        """That may be taken of its GPUs together."""
        return max(0, sum(fragment.free_bytes for fragment in self.fragments) - self.headroom_bytes)


class Fleet:
    """Nodes that have GPUs of the types that may be used; arrays are by node."""

    def __init__(self, nodes: Sequence[Node], types: Collection[str], preference: Preference) -> None:
        self.types = tuple(sorted(types))
        self.preference = preference
        gpus, kinds, rows = self._gpus_of(nodes)
        counts = np.bincount(rows, minlength=len(nodes))
        there = np.flatnonzero(counts)
        self.nodes: list[Node] = [nodes[int(index)] for index in there]
        self._index: dict[str, int] = {}
        self._num_reached: Ints | None = None
        height, self.width = len(there), int(counts.max(initial=0))
        self.free = np.full((height, self.width), _ABSENT, dtype=np.int64)
        """Bytes of each GPU, richest first."""
        self.costs = np.zeros((height, self.width), dtype=np.int64)
        """Of taking each of them."""
        self.kinds = np.zeros((height, self.width), dtype=np.int64)
        """Index of each one's type in `types`."""
        self.free_bytes = np.zeros(height, dtype=np.int64)
        """Of a node's GPUs together."""
        self.spare_bytes = np.full(height, _ANY, dtype=np.int64)
        """That may be taken of a node's GPUs together, whatever their types."""
        self.spanning = np.array([node.spans_nodes for node in self.nodes], dtype=np.bool_)
        if self.nodes:
            self._fill(gpus, kinds, np.repeat(np.arange(height), counts[there]))
        self._keep_headroom(range(height))

    def usable(self, index: int) -> list[Fragment]:
        """The GPUs of a node that are of a type that may be used."""
        return [f for f in self.nodes[index].fragments if f.gpu_type in self.types]

    def num_reached(self) -> Ints:
        """GPUs that one GPU of each node reaches at most, over NVLink, and with PCIe switches too: [2, nodes]."""
        if self._num_reached is None:
            linked = [max(map(len, map(attrgetter("linked"), node.fragments))) for node in self.nodes]
            near = [max(map(len, map(attrgetter("near"), node.fragments))) for node in self.nodes]
            self._num_reached = np.array([linked, np.add(linked, near)], dtype=np.int64).reshape(2, len(self.nodes))
        return self._num_reached

    def having(self, gpus: Collection[str]) -> Ints:
        """The nodes that have these GPUs."""
        if not self._index:
            self._index = {f.gpu: at for at, node in enumerate(self.nodes) for f in node.fragments}
        return np.array(sorted({self._index[gpu] for gpu in gpus}), dtype=np.int64)

    def without(self, held: Mapping[str, int]) -> "Fleet":
        """The fleet once so many bytes of these GPUs are taken."""
        changed = self.having(held)
        other = copy(self)
        other.nodes = list(self.nodes)
        other.free, other.costs, other.kinds = self.free.copy(), self.costs.copy(), self.kinds.copy()
        other.free_bytes, other.spare_bytes = self.free_bytes.copy(), self.spare_bytes.copy()
        for index in map(int, changed):
            node = self.nodes[index]
            left = tuple(replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in node.fragments)
            other.nodes[index] = replace(node, fragments=left)
        gpus, kinds, rows = self._gpus_of([other.nodes[index] for index in map(int, changed)])
        other._fill(gpus, kinds, changed[rows])
        other._keep_headroom(map(int, changed))
        return other

    def keeps_headroom(self, stages: Iterable[Stage]) -> bool:
        """Whether stages that name their nodes leave each of these what it is to keep."""
        held: Counter[str] = Counter()
        for stage in stages:
            held[stage.node] += stage.reserved_bytes * len(stage.gpus)
        return all(held[node.name] <= node.spare_bytes for node in self.nodes if node.headroom_bytes)

    def poorest_ranks(self, rows: Ints, tp: int) -> Ints:
        """Free bytes of the poorest rank of each stage, richest first, where nodes are cut into as many as they give.

        No other way to cut a node's GPUs gives a k-th stage more. [rows, width // tp]
        """
        free = self.free[rows]
        if tp == 1:
            return free
        if len(self.types) == 1:
            return free[:, tp - 1 :: tp]
        by_type = [self.poorest_ranks_of(kind, rows, tp) for kind in range(len(self.types))]
        cut: Ints = -np.sort(-np.concatenate(by_type, axis=1), axis=1)
        return cut[:, : self.width // tp]

    def poorest_ranks_of(self, kind: int, rows: Ints, tp: int) -> Ints:
        """The same of one type alone."""
        of_type = np.where(self.kinds[rows] == kind, self.free[rows], _ABSENT)
        poorest: Ints = -np.sort(-of_type, axis=1)[:, tp - 1 :: tp]
        return poorest

    def neighbour_costs(self, rows: Ints, tp: int) -> Ints:
        """Of `tp` neighbours, by the first of them, [rows, width - tp + 1]."""
        costs: Ints = self.costs[rows]
        return costs if tp == 1 else sliding_window_view(costs, tp, axis=1).sum(axis=2)

    def node_costs(self, rows: Ints) -> Ints:
        """Of nibbling at a node: a replica does not span nodes, so what a full one has left is lost to large models."""
        return self.preference.at_least(self.free_bytes[rows])

    def _keep_headroom(self, indices: Iterable[int]) -> None:
        for index in indices:
            if self.nodes[index].headroom_bytes:
                self.spare_bytes[index] = self.nodes[index].spare_bytes

    def _gpus_of(self, nodes: Sequence[Node]) -> tuple[list[Fragment], Ints, Ints]:
        """Their GPUs of the types that may be used, the index of each one's type, and of its node in `nodes`."""
        number = defaultdict(lambda: -1, {gpu_type: kind for kind, gpu_type in enumerate(self.types)})
        fragments = [node.fragments for node in nodes]
        gpus = list(chain.from_iterable(fragments))
        kinds = np.fromiter(map(number.__getitem__, map(attrgetter("gpu_type"), gpus)), dtype=np.int64, count=len(gpus))
        counts = np.fromiter(map(len, fragments), dtype=np.int64, count=len(nodes))
        rows = np.repeat(np.arange(len(nodes)), counts)
        wanted = kinds >= 0
        if not wanted.all():
            gpus = list(compress(gpus, wanted.tolist()))
        return gpus, kinds[wanted], rows[wanted]

    def _fill(self, gpus: Sequence[Fragment], kinds: Ints, row: Ints) -> None:
        """Args:
        row: of each GPU, ascending.
        """
        rows, starts, counts = np.unique(row, return_index=True, return_counts=True)
        column = np.arange(len(gpus)) - np.repeat(starts, counts)
        free = np.fromiter(map(attrgetter("free_bytes"), gpus), dtype=np.int64, count=len(gpus))
        share = np.fromiter(map(attrgetter("utilisation"), gpus), dtype=np.float64, count=len(gpus))
        self.free[rows] = _ABSENT
        self.free[row, column] = free
        self.costs[row, column] = self.preference.costs(free, share)
        self.kinds[row, column] = kinds
        order = np.lexsort((self.costs[rows], -self.free[rows]), axis=1)
        for array in (self.free, self.costs, self.kinds):
            array[rows] = np.take_along_axis(array[rows], order, axis=1)
        self.free_bytes[rows] = np.maximum(self.free[rows], 0).sum(axis=1)
