"""One replica after the other on a fleet. Pure: what is free in, seats out.

Each goes to the node where NVLink joins its ranks, latency is least, and the least is stranded or what else the
strategy prefers: on the GPUs taken, and on the node, which is worth most to large models while it is empty. `Seat.gap`
is 0 where that is proven to be the best node, with those before it where they are. Once the decision's budget is spent,
replicas are levelled on the node with the best bound, which takes no search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from maveriq.contracts import Candidate, Stage
from maveriq_allocator.budget import Budget
from maveriq_allocator.feasibility import check
from maveriq_allocator.fleet import Fleet
from maveriq_allocator.gaps import gap_of, key_of
from maveriq_allocator.manner import Manner
from maveriq_allocator.packing import NS_PER_MS, Fragment, Joined, Packing, pack
from maveriq_allocator.screening import Key, Screen, Shape, holds
from maveriq_allocator.seats import UNPROVEN, Seat, unproven
from maveriq_allocator.selection import most_missing
from maveriq_allocator.together import levelled, seated_together

MAX_PACKED = 8  # nodes whose packings are compared, where screening cannot tell which is best: 1-2 ms each
MAX_COMPARED_STATES = 200_000  # of all these packings together: 10-20 ms
LEAST_STATES = 15_000  # that a packing counts as, however small: it takes a millisecond
STATES_A_WAY = 6  # that take as long as one way to choose a node's GPUs takes to try


class Seater:
    def __init__(self, candidate: Candidate, shape: Shape, fleet: Fleet, manner: Manner, budget: Budget) -> None:
        """Args:
        fleet: the nodes with the candidate's engine and the GPU types it may use; not changed.
        """
        self._candidate, self._shape, self._fleet, self._manner = candidate, shape, fleet, manner
        self._budget = budget
        self._screen = Screen(fleet, shape, manner.speeds)
        self._num_states = _num_states(shape, fleet)
        self._packings: dict[int, Packing | None] = {}
        """By node: the next replica compares the same ones again, and only where this one is has anything changed."""

    def may_hold(self, num_replicas: int) -> bool:
        return self._screen.most_replicas() >= num_replicas

    def seats(self, num_replicas: int, *, all_of: bool = True) -> list[Seat]:
        """One after the other; fewer where no more find a seat that way.

        Args:
            all_of: fewer are of no use, so it may stop once they cannot be enough.
        """
        seats: list[Seat] = []
        while len(seats) < num_replicas and (not all_of or self.may_hold(num_replicas - len(seats))):
            seat = self._quickly() or self._on_one_node() or self._on_several_nodes()
            if seat is None:
                return seats
            seats.append(seat)
            if len(seats) < num_replicas:
                self._take(seat)
        return seats

    def together(self, num_replicas: int, found: list[Seat]) -> list[Seat]:
        """All seats, or those that were found one after the other."""
        by_node: dict[int, list[tuple[Stage, ...]]] = {}
        for seat in found:
            if _spans(seat):
                return found
            by_node.setdefault(self._node_of(seat), []).append(seat.stages)
        best = seated_together(self._shape, self._fleet, self._screen, num_replicas, by_node, self._budget)
        if best is None:
            return found
        return [seat for index, replicas in best.items() for seat in self._checked(index, replicas)]

    def judged(self, seats: Sequence[Seat]) -> Iterator[Seat]:
        """With the gap of each, once those before it are where they are."""
        if any(map(_spans, seats)) or self._budget.is_late():
            yield from unproven(seats)
            return
        for seat in seats:
            yield replace(seat, gap=self._gap(self._node_of(seat), seat.stages))
            self._take(seat)

    def _node_of(self, seat: Seat) -> int:
        return int(self._fleet.having(seat.stages[0].gpus)[0])

    def _gap(self, index: int, stages: Sequence[Stage]) -> float:
        """Of stages on a node, against the bounds of all."""
        preference, speeds = self._manner.preference, self._manner.speeds
        key = key_of(stages, self._fleet.usable(index), preference, speeds, self._screen.node_cost(index))
        return gap_of(key, self._screen.least())

    def _checked(self, index: int, replicas: Sequence[tuple[Stage, ...]]) -> Iterator[Seat]:
        """Of what is free on the node, each takes its share."""
        left, spare_bytes = self._fleet.usable(index), self._fleet.nodes[index].spare_bytes
        for stages in replicas:
            check(
                stages, self._candidate, self._shape.num_layers, left, types=self._manner.types(self._candidate),
                spare_bytes=spare_bytes,
            )  # fmt: skip
            spare_bytes -= sum(stage.reserved_bytes * len(stage.gpus) for stage in stages)
            held = {gpu: stage.reserved_bytes for stage in stages for gpu in stage.gpus}
            left = [replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in left]
            yield Seat(self._fleet.nodes[index].name, stages, UNPROVEN)

    def _quickly(self) -> Seat | None:
        """On the node with the best bound, once the budget is spent; None: as ever."""
        if not self._budget.is_spent():
            return None
        index = next(iter(self._screen.fitting()), None)
        stages = None if index is None else levelled(self._shape, self._fleet.usable(index))
        if index is None or stages is None:
            return None
        (seat,) = self._checked(index, [stages])
        return replace(seat, gap=self._gap(index, stages))

    def _on_one_node(self) -> Seat | None:
        best: tuple[Key, int, Packing] | None = None
        is_proven = True
        max_packed = 1 if self._budget.is_spent() else max(1, min(MAX_PACKED, MAX_COMPARED_STATES // self._num_states))
        for num_packed, index in enumerate(self._promising()):
            bound = self._screen.bound(index)
            if best is not None and bound >= best[0]:
                break
            if best is not None and num_packed >= max_packed:
                is_proven = False
                break
            packing = self._packed_on(index)
            if packing is None:
                continue
            is_proven &= packing.is_exact
            key = _key(packing, self._screen.node_cost(index))
            if best is None or key < best[0]:
                best = key, index, packing
        if best is None:
            return None
        key, index, packing = best
        node = self._fleet.nodes[index]
        gap = 0.0 if is_proven else gap_of(key, self._screen.least())
        return self._seat(node.name, packing, self._fleet.usable(index), gap, node.spare_bytes)

    def _on_several_nodes(self) -> Seat | None:
        """On as few of the emptiest nodes as hold it; else on those with the richest ranks, which do if any do."""
        fleet, shape = self._fleet, self._shape
        nodes = np.flatnonzero(fleet.spanning)
        if shape.pp < 2 or len(nodes) < 2:
            return None
        emptiest = nodes[np.argsort(-fleet.free_bytes[nodes], kind="stable")[: shape.pp]]
        richest_ranks = fleet.poorest_ranks(nodes, shape.tp)
        richest = np.argsort(-richest_ranks, axis=None, kind="stable")[: shape.pp] // max(1, richest_ranks.shape[1])
        choices = [emptiest[:num_nodes] for num_nodes in range(2, len(emptiest) + 1)]
        for chosen in [*choices, nodes[np.unique(richest)]]:
            ranks = -np.sort(-fleet.poorest_ranks(chosen, shape.tp), axis=None)[: shape.pp]
            if len(ranks) < shape.pp or not holds(shape, ranks):
                continue
            pool = [replace(f, node=fleet.nodes[i].name) for i in map(int, chosen) for f in fleet.usable(i)]
            packing = self._packed(pool)
            if packing is not None and fleet.keeps_headroom(packing.stages):
                node = next(f.node for f in pool if f.gpu == packing.stages[0].gpus[0])
                return self._seat(node, packing, pool, gap_of(_key(packing, 0), self._least_of_several_nodes()))
        return None

    def _least_of_several_nodes(self) -> Key:
        speeds, shape = self._manner.speeds or {}, self._shape
        layer_ns = round(min(speeds.values(), default=0.0) * NS_PER_MS)
        return (
            Joined.NVLINK,
            shape.num_layers * layer_ns,
            int(self._manner.preference.at_least(np.array(shape.needed_bytes))),
        )

    def _promising(self) -> list[int]:
        before = self._screen.num_tried
        promising = self._screen.promising()
        self._budget.num_states -= STATES_A_WAY * (self._screen.num_tried - before)
        return promising

    def _packed_on(self, index: int) -> Packing | None:
        if index not in self._packings:
            self._packings[index] = self._packed(self._fleet.usable(index))
        return self._packings[index]

    def _packed(self, fragments: Sequence[Fragment]) -> Packing | None:
        shape = self._shape
        self._budget.num_states -= self._num_states
        packing = pack(
            shape.memory, shape.num_layers, pp=shape.pp, tp=shape.tp, fragments=fragments, speeds=self._manner.speeds,
            preference=self._manner.preference, most_layers=shape.most_layers,
        )  # fmt: skip
        return packing if isinstance(packing, Packing) else None

    def _seat(
        self, node: str, packing: Packing, fragments: Sequence[Fragment], gap: float, spare_bytes: int | None = None
    ) -> Seat:
        types = self._manner.types(self._candidate)
        spans = len({f.node for f in fragments}) > 1
        check(
            packing.stages, self._candidate, self._shape.num_layers, fragments, types=types, spans_nodes=spans,
            spare_bytes=spare_bytes,
        )  # fmt: skip
        return Seat(node, packing.stages, gap)

    def _take(self, seat: Seat) -> None:
        """What the seat holds is no longer free."""
        held = {gpu: stage.reserved_bytes for stage in seat.stages for gpu in stage.gpus}
        changed = self._fleet.having(held)
        self._fleet = self._fleet.without(held)
        self._screen.update(self._fleet, changed)
        for index in map(int, changed):
            self._packings.pop(index, None)


def _spans(seat: Seat) -> bool:
    return any(stage.node not in ("", seat.node) for stage in seat.stages)


def _num_states(shape: Shape, fleet: Fleet) -> int:
    """Roughly, of the programmes that pack one of the fleet's nodes."""
    missing = 1 + most_missing(shape.pp, shape.tp, neighbours=shape.tp == 1)
    selecting = max(1, fleet.width) * missing * (shape.pp + 1) * 4 * (shape.num_layers + 1)
    mixing = 9 * shape.pp**2 // 2 * (shape.num_layers + 1) ** 2 // 3  # divisions of stages and ends, then of layers
    return max(LEAST_STATES, selecting + (len(fleet.types) - 1) * mixing)


def _key(packing: Packing, node_cost: int) -> Key:
    return packing.joined, round((packing.latency_ms or 0.0) * NS_PER_MS), packing.cost + node_cost
