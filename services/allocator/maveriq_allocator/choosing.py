"""Which candidate a deployment gets. Pure: a plan and what is free in, one choice for all replicas out.

The first candidate that fits wins: the planner ranked them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maveriq.contracts import Candidate, Intent, Plan, Strategy
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.seating import Manner, seat_all
from maveriq_allocator.seats import Seat
from maveriq_allocator.shortages import shortage
from maveriq_allocator.strategies import Preference
from maveriq_allocator.together import Budget

__all__ = ["Choice", "Manner", "Node", "Seat", "choose", "manner_of", "shortage"]


def manner_of(intent: Intent, default: Strategy) -> Manner:
    """How the replicas of an intent are seated.

    Args:
        default: of intents that name no strategy.
    """
    return Manner(Preference(intent.strategy or default, intent.hybrid_threshold))


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate, and a seat for each replica."""

    rank: int
    """Of the candidate in its plan."""
    seats: tuple[Seat, ...]
    parts: tuple[Candidate, ...] = ()
    """Of each seat, where it is the plan's fleet that is placed."""


def choose(
    plan: Plan, nodes: Sequence[Node], *, num_replicas: int | None = None, start: int = 0, manner: Manner | None = None
) -> Choice | None:
    """Seats for all replicas, or for none: None where no candidate from rank `start` on fits.

    A replica is mixed of the GPU types that its candidate allows only where no candidate fits on its own type.

    Args:
        num_replicas: None: as many as each candidate says.
    """
    manner = manner or Manner()
    fleets, budget = _Fleets(nodes, manner.preference), Budget()
    for is_mixed in (False, True) if manner.speeds is None else (False,):
        for rank in range(start, len(plan.candidates)):
            candidate = plan.candidates[rank]
            how = _mixed(candidate, manner) if is_mixed else manner
            if how is None:
                continue
            fleet = fleets.of(candidate.configuration.engine, how.types(candidate))
            seats = seat_all(candidate, plan.facts.num_layers, fleet, num_replicas or candidate.replicas, how, budget)
            if seats is not None:
                return Choice(rank, seats)
    return None


def _mixed(candidate: Candidate, manner: Manner) -> Manner | None:
    """None: its replicas cannot be mixed, or are split by the planner already."""
    speeds = {speed.gpu_type: speed.decode_ms for speed in candidate.mixable}
    is_free = len(speeds) > 1 and candidate.configuration.pp > 1 and not candidate.stages
    return replace(manner, speeds=speeds) if is_free else None


class _Fleets:
    """Arrays of a snapshot, made once for each engine and set of GPU types."""

    def __init__(self, nodes: Sequence[Node], preference: Preference) -> None:
        self._nodes, self._preference = nodes, preference
        self._made: dict[tuple[str, frozenset[str]], Fleet] = {}

    def of(self, engine: str, types: frozenset[str]) -> Fleet:
        fleet = self._made.get((engine, types))
        if fleet is None:
            fleet = Fleet([node for node in self._nodes if node.engine == engine], types, self._preference)
            self._made[engine, types] = fleet
        return fleet
