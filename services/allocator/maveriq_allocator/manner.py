"""How seats are chosen among those that fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from maveriq.contracts import Candidate
from maveriq_allocator.planned import planned_types
from maveriq_allocator.screening import Shape
from maveriq_allocator.strategies import Preference


@dataclass(frozen=True, slots=True)
class Manner:
    preference: Preference = field(default_factory=Preference)
    speeds: Mapping[str, float] | None = None
    """ms per layer of each GPU type that a replica may be mixed of; None: only the candidate's own type."""

    def types(self, candidate: Candidate) -> frozenset[str]:
        if candidate.stages:
            return planned_types(candidate)
        return frozenset((candidate.configuration.gpu_type,) if self.speeds is None else self.speeds)

    def shape(self, candidate: Candidate, num_layers: int) -> Shape:
        configuration = candidate.configuration
        return Shape(candidate.memory, num_layers, configuration.pp, configuration.tp, num_layers)
