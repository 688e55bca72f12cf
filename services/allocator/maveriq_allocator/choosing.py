"""Which candidate a deployment gets. Pure: a plan and what is free in, one choice for all replicas out.

The first candidate that fits wins: the planner ranked them. One that found no seats in the time there is may still have
some: whatever comes after it then proves nothing (gap 1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from maveriq.contracts import Candidate, Intent, Plan, Strategy
from maveriq_allocator.budget import Budget, Clock, budgets
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.manner import Manner
from maveriq_allocator.seating import seat_all
from maveriq_allocator.seats import Seat, unproven
from maveriq_allocator.shortages import shortage
from maveriq_allocator.strategies import Preference

__all__ = ["Choice", "Manner", "Node", "Seat", "choose", "chosen", "manner_of", "shortage"]


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
    plan: Plan, nodes: Sequence[Node], *, num_replicas: int | None = None, start: int = 0,
    manner: Manner | None = None, clock: Clock | None = None,
) -> Choice | None:  # fmt: skip
    """Seats for all replicas, or for none: None where no candidate from rank `start` on fits.

    Args:
        num_replicas: None: as many as each candidate says.
        clock: by which the decision is made in time.
    """
    tries = (chosen(plan, nodes, num_replicas, start, manner or Manner(), budget) for budget in budgets(clock))
    return next((choice for choice in tries if choice is not None), None)


def chosen(
    plan: Plan, nodes: Sequence[Node], num_replicas: int | None, start: int, manner: Manner, budget: Budget
) -> Choice | None:
    """The same with so much to look at, and no more."""
    fleets = _Fleets(nodes, manner.preference)
    for rank, how in _ways(plan, start, manner):
        candidate, was_short = plan.candidates[rank], budget.was_short
        fleet = fleets.of(candidate.configuration.engine, how.types(candidate))
        seats = seat_all(candidate, plan.facts.num_layers, fleet, num_replicas or candidate.replicas, how, budget)
        if seats is not None:
            return Choice(rank, unproven(seats) if was_short else seats)
    return None


def _ways(plan: Plan, start: int, manner: Manner) -> Iterator[tuple[int, Manner]]:
    """Candidates in the order in which they are tried.

    A replica is mixed of the GPU types that its candidate allows only where no candidate fits on its own type.
    """
    ranks = range(start, len(plan.candidates))
    yield from ((rank, manner) for rank in ranks)
    if manner.speeds is None:
        mixed = ((rank, _mixed(plan.candidates[rank], manner)) for rank in ranks)
        yield from ((rank, how) for rank, how in mixed if how is not None)


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
