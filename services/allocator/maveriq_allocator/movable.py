"""Replicas that may move, and where to. Pure."""

from dataclasses import dataclass
from uuid import UUID

from maveriq.contracts import Candidate, ModelFacts, Plan, Stage


@dataclass(frozen=True, slots=True)
class Movable:
    """A replica that serves."""

    deployment_id: UUID
    replica: int
    token: str
    candidate: Candidate
    facts: ModelFacts
    node: str
    stages: tuple[Stage, ...]

    @property
    def gpus(self) -> frozenset[str]:
        return frozenset(gpu for stage in self.stages for gpu in stage.gpus)

    @property
    def num_bytes(self) -> int:
        return sum(stage.reserved_bytes * len(stage.gpus) for stage in self.stages)

    @property
    def plan(self) -> Plan:
        return Plan(facts=self.facts, candidates=(self.candidate,), num_considered=1)


@dataclass(frozen=True, slots=True)
class Place:
    node: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    what: Movable
    to: Place
