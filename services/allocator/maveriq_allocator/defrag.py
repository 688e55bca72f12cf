"""The fewest moves that make room. Pure: what is free, which replicas may move and a goal in, moves in order out.

A move starts a copy of a replica elsewhere while the replica still holds its memory, and gives that back afterwards; so
the copy must fit into what is free at that moment. Each replica moves once at most, as a whole, with its candidate.

Sets of replicas are tried: those that must move, and none, one, ... up to `Bounds.most_moves` others, of equal size
those first that move the fewest bytes; of each set every order and every place. A set is left out only where its goal
is not reached even if all of it were gone, so for replicas on one GPU the number of moves is proven to be the least. A
replica of several GPUs has many packings on a node: the best one on all of its GPUs is tried and the best one without
each of them, and then nothing is proven, nor where `Bounds` end the search or leave replicas or nodes out: then those
that are most likely in the way, the nodes that they are on and the freest others are looked at.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from maveriq.contracts import Stage
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.goals import Goal
from maveriq_allocator.movable import Movable, Moved, Place
from maveriq_allocator.packing import Fragment


@dataclass(frozen=True, slots=True)
class Bounds:
    most_moves: int = 4
    """Beside those that must be."""
    max_tried: int = 5_000
    """Packings asked for: a millisecond each on a small fleet."""
    max_movable: int = 64
    max_nodes: int = 128
    is_late: Callable[[], bool] = lambda: False
    """Whether the search took as long as it may."""


@dataclass(frozen=True, slots=True)
class Found:
    moves: tuple[Moved, ...] | None
    """None: no set of moves that was tried reaches the goal."""
    is_fewest: bool
    """No smaller set does; of None: no set within the bounds."""


def fewest(nodes: Sequence[Node], movable: Sequence[Movable], goal: Goal, bounds: Bounds | None = None) -> Found:
    """Args:
    nodes: what is free now.
    movable: the replicas that may move, with what they hold.
    """
    return _Search(nodes, movable, goal, bounds or Bounds()).found()


class _Exhausted(Exception):
    """As much was tried as is allowed."""


class _Search:
    def __init__(self, nodes: Sequence[Node], movable: Sequence[Movable], goal: Goal, bounds: Bounds) -> None:
        self._goal, self._bounds = goal, bounds
        free = {node.name: sum(f.free_bytes for f in node.fragments) for node in nodes}
        near = sorted(movable, key=lambda m: (goal.nearness(m, free), m.num_bytes, m.token))
        self._movable = near[: bounds.max_movable]
        self._nodes = _nearest(nodes, self._movable, bounds.max_nodes)
        is_whole = len(near) == len(self._movable) and len(nodes) == len(self._nodes)
        self._is_exact = is_whole and all(len(m.gpus) == 1 for m in self._movable)
        self._all = list(movable)
        self._left = bounds.max_tried

    def found(self) -> Found:
        try:
            needed = tuple(movable for movable in self._movable if self._goal.needs(movable))
            others = [movable for movable in self._movable if not self._goal.needs(movable)]
            for num_others in range(self._bounds.most_moves + 1):
                sets = combinations(others, num_others)
                for chosen in sorted(sets, key=lambda each: sum(m.num_bytes for m in each)):
                    largest_first = sorted((*needed, *chosen), key=lambda m: -m.num_bytes)
                    moves = self._moves(tuple(largest_first), self._nodes)
                    if moves is not None:
                        is_least = self._is_exact or not chosen or len(moves) == 1
                        return Found(tuple(moves), is_least)
        except _Exhausted:
            return Found(None, is_fewest=False)
        return Found(None, self._is_exact)

    def _moves(self, chosen: tuple[Movable, ...], nodes: list[Node]) -> list[Moved] | None:
        """All of them moved, in some order, so that the goal is met at the end."""
        self._tick()
        gone = _with(nodes, _bytes(stage for movable in chosen for stage in movable.stages))
        staying = [movable for movable in self._all if movable not in chosen]
        if not self._goal.is_met(gone, staying):
            return None
        return self._in_some_order(chosen, nodes, staying)

    def _in_some_order(
        self, rest: tuple[Movable, ...], nodes: list[Node], staying: Sequence[Movable]
    ) -> list[Moved] | None:
        if not rest:
            return [] if self._goal.is_met(nodes, staying) else None
        for movable in rest:
            others = tuple(other for other in rest if other is not movable)
            for place in self._places(movable, nodes):
                after = _with(nodes, _bytes(movable.stages), _bytes(place.stages))
                gone = _with(after, _bytes(stage for other in others for stage in other.stages))
                self._tick()
                if others and not self._goal.is_met(gone, staying):
                    continue
                further = self._in_some_order(others, after, staying)
                if further is not None:
                    return [Moved(movable, place), *further]
        return None

    def _places(self, movable: Movable, nodes: list[Node]) -> Iterator[Place]:
        """Where it fits beside itself, the tightest first."""
        found: dict[frozenset[str], tuple[int, Place]] = {}
        for node in self._goal.allows(nodes):
            for fragments in _choices(node, movable):
                self._tick()
                choice = choose(movable.plan, [replace(node, fragments=fragments)], num_replicas=1)
                if choice is None:
                    continue
                (seat,) = choice.seats
                gpus = frozenset(gpu for stage in seat.stages for gpu in stage.gpus)
                if gpus != movable.gpus:
                    spare = sum(f.free_bytes for f in node.fragments if f.gpu in gpus)
                    found[gpus] = spare, Place(seat.node, seat.stages)
        for _, place in sorted(found.values(), key=lambda each: each[0]):
            yield place

    def _tick(self) -> None:
        self._left -= 1
        if self._left < 0 or self._bounds.is_late():
            raise _Exhausted


def _nearest(nodes: Sequence[Node], movable: Sequence[Movable], most: int) -> list[Node]:
    """The nodes that the replicas are on, then the freest."""
    if len(nodes) <= most:
        return list(nodes)
    theirs = {each.node for each in movable}
    return sorted(nodes, key=lambda n: (n.name not in theirs, -sum(f.free_bytes for f in n.fragments), n.name))[:most]


def _choices(node: Node, movable: Movable) -> Iterator[tuple[Fragment, ...]]:
    """The GPUs of a node among which it is packed."""
    if len(movable.gpus) == 1:
        needed = movable.stages[0].reserved_bytes
        for fragment in node.fragments:
            if fragment.free_bytes >= needed:
                yield (fragment,)
        return
    yield node.fragments
    for left_out in node.fragments:
        yield tuple(f for f in node.fragments if f is not left_out)


def _bytes(stages: Iterable[Stage]) -> dict[str, int]:
    held: dict[str, int] = {}
    for stage in stages:
        for gpu in stage.gpus:
            held[gpu] = held.get(gpu, 0) + stage.reserved_bytes
    return held


def _with(nodes: Sequence[Node], freed: dict[str, int], held: dict[str, int] | None = None) -> list[Node]:
    """What is free once these bytes are given back, and those taken."""
    held = held or {}
    if not freed and not held:
        return list(nodes)
    changed: list[Node] = []
    for node in nodes:
        if any(f.gpu in freed or f.gpu in held for f in node.fragments):
            now = (f.free_bytes + freed.get(f.gpu, 0) - held.get(f.gpu, 0) for f in node.fragments)
            fragments = tuple(replace(f, free_bytes=n) for f, n in zip(node.fragments, now, strict=True))
            node = replace(node, fragments=fragments)
        changed.append(node)
    return changed
