"""What moves are to reach: room for a plan, or an empty GPU. Pure: what is free in, whether that is it out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from maveriq.contracts import Plan
from maveriq_allocator.budget import Clock
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.movable import Movable
from maveriq_allocator.waiting import without


class Goal(Protocol):
    def is_met(self, nodes: Sequence[Node], staying: Sequence[Movable]) -> bool:
        """Whether it is reached with so much free, and these replicas where they were."""
        ...

    def allows(self, nodes: Sequence[Node]) -> list[Node]:
        """What moves may go to."""
        ...

    def needs(self, movable: Movable) -> bool:
        """Whether it must move."""
        ...

    def nearness(self, movable: Movable, free_bytes: Mapping[str, int]) -> float:
        """Less: the more likely it is in the way; `free_bytes` by node."""
        ...


@dataclass(frozen=True, slots=True)
class Seated:
    """A plan has seats."""

    plan: Plan
    num_replicas: int | None = None
    start: int = 0
    clock: Clock | None = None

    def is_met(self, nodes: Sequence[Node], staying: Sequence[Movable]) -> bool:
        choice = choose(self.plan, nodes, num_replicas=self.num_replicas, start=self.start, clock=self.clock)
        return choice is not None

    def allows(self, nodes: Sequence[Node]) -> list[Node]:
        return list(nodes)

    def needs(self, movable: Movable) -> bool:
        return False

    def nearness(self, movable: Movable, free_bytes: Mapping[str, int]) -> float:
        return -float(free_bytes.get(movable.node, 0) + movable.num_bytes)


@dataclass(frozen=True, slots=True)
class Emptied:
    """A GPU is held by none of the replicas."""

    gpu: str

    def is_met(self, nodes: Sequence[Node], staying: Sequence[Movable]) -> bool:
        return all(self.gpu not in movable.gpus for movable in staying)

    def allows(self, nodes: Sequence[Node]) -> list[Node]:
        return without(nodes, frozenset({self.gpu}))

    def needs(self, movable: Movable) -> bool:
        return self.gpu in movable.gpus

    def nearness(self, movable: Movable, free_bytes: Mapping[str, int]) -> float:
        return 0.0 if self.needs(movable) else 1.0
