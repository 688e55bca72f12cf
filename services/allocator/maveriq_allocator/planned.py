"""Seats for pipelines that the planner has split itself. Pure: stages, each with its bytes, and a fleet in, seats out.

One GPU of its type a stage, all on one node unless the engine spans nodes; stages, their order and their precisions are
kept. What a GPU costs does not depend on the stage that takes it, and a smaller stage fits wherever a larger one does.
So the largest takes the cheapest GPU that holds it, then the next: where another choice gives that GPU to a smaller
stage, the two can change places at no cost. One replica is seated if any node holds it, on the cheapest GPUs of all
nodes. Several are seated one after the other, then each on the richest GPUs, then all of a node at once
(`planned_joint`), which is exact on the few nodes that are decided so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maveriq.contracts import Candidate, PlannedStage, Stage
from maveriq_allocator.budget import Budget
from maveriq_allocator.feasibility import check
from maveriq_allocator.fleet import Flags, Fleet, Ints
from maveriq_allocator.packing import Fragment
from maveriq_allocator.planned_joint import pack_planned
from maveriq_allocator.seats import UNPROVEN, Seat
from maveriq_allocator.selection import NEVER


def planned_types(candidate: Candidate) -> frozenset[str]:
    return frozenset(stage.gpu_type for stage in candidate.stages)


def seat_planned(
    candidate: Candidate, num_layers: int, fleet: Fleet, num_replicas: int, budget: Budget
) -> tuple[Seat, ...] | None:
    """Args:
    fleet: the nodes with the candidate's engine and GPUs of its stages' types; not changed.
    """
    seating = _Seating(candidate, num_layers)
    if seating.most_replicas(fleet) < num_replicas:
        return None
    seats = seating.seats(fleet, num_replicas)
    if len(seats) < num_replicas and num_replicas > 1:
        seats = max(seats, seating.seats(fleet, num_replicas, richest=True), key=len)
    if len(seats) < num_replicas and num_replicas > 1:
        seats = seating.together(fleet, num_replicas, seats, budget)
    return tuple(seats) if len(seats) == num_replicas else None


def num_planned_seated(candidate: Candidate, num_layers: int, fleet: Fleet, num_replicas: int) -> int:
    """Replicas that find a seat one after the other, `num_replicas` at most."""
    return len(_Seating(candidate, num_layers).seats(fleet, num_replicas))


@dataclass(frozen=True, slots=True)
class Taken:
    """What one replica takes of each of several sets of GPUs."""

    columns: Ints
    """GPU of each stage, [sets, stages]."""
    costs: Ints
    """Of all of them; NEVER where it does not fit."""


def cheapest(stages: Sequence[PlannedStage], types: Sequence[str], free: Ints, kinds: Ints, costs: Ints) -> Taken:
    """The GPUs of least cost that hold the stages.

    Args:
        types: what `kinds` are indices of.
        free, kinds, costs: of each GPU, [sets, GPUs].
    """
    rows = np.arange(len(free))
    left: Flags = np.ones(free.shape, dtype=np.bool_)
    fits: Flags = np.ones(len(free), dtype=np.bool_)
    columns = np.zeros((len(free), len(stages)), dtype=np.int64)
    total = np.zeros(len(free), dtype=np.int64)
    for at in sorted(range(len(stages)), key=lambda at: -stages[at].reserved_bytes):
        stage = stages[at]
        holds = left & (kinds == types.index(stage.gpu_type)) & (free >= stage.reserved_bytes)
        columns[:, at] = np.where(holds, costs, NEVER).argmin(axis=1)
        fits &= holds.any(axis=1)
        total += costs[rows, columns[:, at]]
        left[rows, columns[:, at]] = False
    return Taken(columns, np.where(fits, total, NEVER))


class _Seating:
    def __init__(self, candidate: Candidate, num_layers: int) -> None:
        self._candidate, self._num_layers = candidate, num_layers
        self._stages = candidate.stages
        self._needed_bytes = sum(stage.reserved_bytes for stage in self._stages)

    def most_replicas(self, fleet: Fleet) -> int:
        """No more fit on the fleet side by side."""
        if not fleet.nodes:
            return 0
        alone = int(self._most(fleet)[~fleet.spanning].sum())
        return alone + int(fleet.free_bytes[fleet.spanning].sum()) // self._needed_bytes

    def seats(self, fleet: Fleet, num_replicas: int, *, richest: bool = False) -> list[Seat]:
        """One after the other; fewer where no more find a seat that way.

        Args:
            richest: on the GPUs with most free, so that what is left stays level.
        """
        seats: list[Seat] = []
        while len(seats) < num_replicas and fleet.nodes:
            seat = self._on_one_node(fleet, richest=richest) or self._on_several_nodes(fleet, richest=richest)
            if seat is None:
                break
            seats.append(seat)
            if len(seats) < num_replicas:
                fleet = fleet.without({gpu: stage.reserved_bytes for stage in seat.stages for gpu in stage.gpus})
        return seats

    def together(self, fleet: Fleet, num_replicas: int, found: list[Seat], budget: Budget) -> list[Seat]:
        """All seats, or those that were found one after the other."""
        by_node: dict[int, list[Seat]] = {}
        for seat in found:
            if any(stage.node not in ("", seat.node) for stage in seat.stages):
                return found
            by_node.setdefault(int(fleet.having(seat.stages[0].gpus)[0]), []).append(seat)
        lacking = num_replicas - len(found)
        gains = {at: int(most) - len(by_node.get(at, [])) for at, most in enumerate(self._most(fleet))}
        for index in sorted(gains, key=lambda index: -gains[index]):
            if lacking < 1 or gains[index] < 1 or budget.num_joint < 1 or budget.is_late():
                break
            budget.num_joint -= 1
            before = by_node.get(index, [])
            seats = list(self._packed(fleet, index, len(before) + min(lacking, gains[index]), budget))
            if len(seats) > len(before):
                by_node[index] = seats
                lacking -= len(seats) - len(before)
        return found if lacking else [seat for seats in by_node.values() for seat in seats]

    def _packed(self, fleet: Fleet, index: int, most: int, budget: Budget) -> Iterator[Seat]:
        """Of what is free on the node, each takes its share."""
        left, spare_bytes = fleet.usable(index), fleet.nodes[index].spare_bytes
        for gpus in pack_planned(self._stages, left, most, budget):
            stages = self._on(gpus)
            self._check(stages, left, spare_bytes)
            spare_bytes -= self._needed_bytes
            held = {gpu: stage.reserved_bytes for stage in stages for gpu in stage.gpus}
            left = [replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in left]
            yield Seat(fleet.nodes[index].name, stages, UNPROVEN)

    def _most(self, fleet: Fleet) -> Ints:
        """No more fit on each node side by side: by bytes, and by GPUs that can hold a stage, however shared."""
        most: Ints = fleet.spare_bytes // self._needed_bytes
        for kind, gpu_type in enumerate(fleet.types):
            sizes = [stage.reserved_bytes for stage in self._stages if stage.gpu_type == gpu_type]
            free = np.where(fleet.kinds == kind, np.maximum(fleet.free, 0), 0)
            beside = np.minimum(free.sum(axis=1) // sum(sizes), (free // min(sizes)).sum(axis=1) // len(sizes))
            most = np.minimum(most, beside)
        return most

    def _on_one_node(self, fleet: Fleet, *, richest: bool) -> Seat | None:
        taken = cheapest(
            self._stages, fleet.types, fleet.free, fleet.kinds, -fleet.free if richest else fleet.costs
        )  # fmt: skip
        fits = (taken.costs < NEVER) & (fleet.spare_bytes >= self._needed_bytes)
        if not fits.any():
            return None
        of_nodes = 0 if richest else fleet.node_costs(np.arange(len(fleet.nodes)))
        index = int(np.where(fits, taken.costs + of_nodes, NEVER).argmin())
        return self._among(fleet, [index], UNPROVEN if richest else 0.0, richest=richest)

    def _on_several_nodes(self, fleet: Fleet, *, richest: bool) -> Seat | None:
        """On as few of the emptiest nodes as hold it; else on whichever hold it."""
        nodes = np.flatnonzero(fleet.spanning)
        if len(self._stages) < 2 or len(nodes) < 2:
            return None
        emptiest = [int(index) for index in nodes[np.argsort(-fleet.free_bytes[nodes], kind="stable")]]
        few = range(2, min(len(self._stages), len(emptiest)) + 1)
        for chosen in (*(emptiest[:num_nodes] for num_nodes in few), emptiest):
            seat = self._among(fleet, chosen, UNPROVEN, richest=richest)
            if seat is not None:
                return seat
        return None

    def _among(self, fleet: Fleet, nodes: Sequence[int], gap: float, *, richest: bool) -> Seat | None:
        """On the GPUs of these nodes together."""
        several = len(nodes) > 1
        pool = [
            replace(f, node=fleet.nodes[at].name) if several else f for at in nodes for f in fleet.usable(at)
        ]  # fmt: skip
        free = np.array([[f.free_bytes for f in pool]], dtype=np.int64)
        kinds = np.array([[fleet.types.index(f.gpu_type) for f in pool]], dtype=np.int64)
        costs = -free if richest else fleet.preference.costs(free, np.array([[f.utilisation for f in pool]]))
        taken = cheapest(self._stages, fleet.types, free, kinds, costs)
        if taken.costs[0] >= NEVER:
            return None
        gpus = [pool[int(at)] for at in taken.columns[0]]
        stages = self._on(gpus)
        if several and not fleet.keeps_headroom(stages):
            return None
        self._check(stages, pool, None if several else fleet.nodes[nodes[0]].spare_bytes)
        return Seat(gpus[0].node or fleet.nodes[nodes[0]].name, stages, gap)

    def _check(self, stages: Sequence[Stage], pool: Sequence[Fragment], spare_bytes: int | None) -> None:
        """Args:
        spare_bytes: of the one node; None: on several.
        """
        check(
            stages, self._candidate, self._num_layers, pool, types=planned_types(self._candidate),
            spans_nodes=spare_bytes is None, spare_bytes=spare_bytes,
        )  # fmt: skip

    def _on(self, gpus: Sequence[Fragment]) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                gpus=(at.gpu,), num_layers=stage.num_layers, reserved_bytes=stage.reserved_bytes, node=at.node,
                gpu_type=stage.gpu_type, precisions=stage.precisions,
            )
            for stage, at in zip(self._stages, gpus, strict=True)
        )  # fmt: skip
