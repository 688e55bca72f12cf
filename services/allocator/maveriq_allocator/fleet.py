"""The GPUs of a fleet as arrays. Pure: nodes in, what is free on each and what it costs out."""

from collections.abc import Container, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from maveriq_allocator.packing import NS_PER_MS, Fragment
from maveriq_allocator.strategies import Preference

_ABSENT = -1  # free bytes where a node has fewer GPUs than others

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Node:
    """What is free on one node that runs one engine."""

    name: str
    engine: str
    fragments: tuple[Fragment, ...]
    spans_nodes: bool = False
    """Its engine runs one replica's stages on several such nodes."""


class Fleet:
    """Nodes that have GPUs of the types that may be used; arrays are by node."""

    def __init__(self, nodes: Sequence[Node], types: Mapping[str, float], preference: Preference) -> None:
        """Args:
        types: that may be used, and their ms per layer.
        """
        self._layer_ns = {gpu_type: round(layer_ms * NS_PER_MS) for gpu_type, layer_ms in types.items()}
        self.preference = preference
        usable = [[f for f in node.fragments if f.gpu_type in types] for node in nodes]
        self.nodes: list[Node] = [node for node, gpus in zip(nodes, usable, strict=True) if gpus]
        self._usable = [gpus for gpus in usable if gpus]
        self.width = max((len(node.fragments) for node in self.nodes), default=0)
        height = len(self.nodes)
        self.free = np.full((height, self.width), _ABSENT, dtype=np.int64)
        """Bytes of each GPU, richest first."""
        self.costs = np.zeros((height, self.width), dtype=np.int64)
        """Of taking each of them."""
        self.free_bytes = np.zeros(height, dtype=np.int64)
        """Of a node's GPUs together."""
        self.layer_ns = np.zeros(height, dtype=np.int64)
        """On the fastest GPU that a node has."""
        self.num_linked = np.zeros(height, dtype=np.int64)
        """GPUs that one GPU of the node reaches over NVLink, at most."""
        if self.nodes:
            self._fill(np.arange(height))

    def usable(self, index: int) -> list[Fragment]:
        """The GPUs of a node that are of a type that may be used."""
        return self._usable[index]

    def having(self, gpus: Container[str]) -> Ints:
        """The nodes that have one of these GPUs."""
        here = (index for index, node in enumerate(self.nodes) if any(f.gpu in gpus for f in node.fragments))
        return np.fromiter(here, dtype=np.int64)

    def without(self, held: Mapping[str, int]) -> "Fleet":
        """The fleet once so many bytes of these GPUs are taken."""
        other = copy(self)
        other.nodes, other._usable = list(self.nodes), list(self._usable)
        other.free, other.costs = self.free.copy(), self.costs.copy()
        other.free_bytes = self.free_bytes.copy()
        changed = self.having(held)
        for index in map(int, changed):
            node: Node = self.nodes[index]
            left = tuple(replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in node.fragments)
            other.nodes[index] = replace(node, fragments=left)
            other._usable[index] = [f for f in left if f.gpu_type in self._layer_ns]
        other._fill(changed)
        return other

    def block_costs(self, rows: Ints, tp: int) -> Ints:
        """Of `tp` neighbours, by the first of them, [rows, width - tp + 1]."""
        costs: Ints = self.costs[rows]
        return costs if tp == 1 else sliding_window_view(costs, tp, axis=1).sum(axis=2)

    def node_costs(self, rows: Ints) -> Ints:
        """Of nibbling at a node: a replica does not span nodes, so what a full one has left is lost to large models."""
        return self.preference.at_least(self.free_bytes[rows])

    def richest(self, num_blocks: int, tp: int) -> list[int]:
        """The nodes that have the richest blocks of `tp` GPUs."""
        poorest = self.free[:, tp - 1 :: tp]
        best = np.argsort(-poorest, axis=None, kind="stable")[:num_blocks]
        return sorted({int(place) // poorest.shape[1] for place in best})

    def _fill(self, rows: Ints) -> None:
        usable = [self._usable[index] for index in map(int, rows)]
        gpus = list(chain.from_iterable(usable))
        counts = np.fromiter(map(len, usable), dtype=np.int64, count=len(usable))
        starts = np.cumsum(counts) - counts
        row = np.repeat(rows, counts)
        column = np.arange(len(gpus)) - np.repeat(starts, counts)
        free = np.fromiter(map(attrgetter("free_bytes"), gpus), dtype=np.int64, count=len(gpus))
        share = np.fromiter(map(attrgetter("utilisation"), gpus), dtype=np.float64, count=len(gpus))
        self.free[rows] = _ABSENT
        self.free[row, column] = free
        self.costs[row, column] = self.preference.costs(free, share)
        order = np.argsort(-self.free[rows], axis=1, kind="stable")
        self.free[rows] = np.take_along_axis(self.free[rows], order, axis=1)
        self.costs[rows] = np.take_along_axis(self.costs[rows], order, axis=1)
        self.free_bytes[rows] = np.maximum(self.free[rows], 0).sum(axis=1)
        if len(set(self._layer_ns.values())) > 1:
            layer_ns = np.array([self._layer_ns[f.gpu_type] for f in gpus], dtype=np.int64)
            self.layer_ns[rows] = np.minimum.reduceat(layer_ns, starts)
        else:
            self.layer_ns[rows] = next(iter(self._layer_ns.values()))
        linked = np.fromiter(map(len, map(attrgetter("linked"), gpus)), dtype=np.int64, count=len(gpus))
        self.num_linked[rows] = np.maximum.reduceat(linked, starts)
