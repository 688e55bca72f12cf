"""Seats for a plan's fleet: each part on its own GPU type. Pure: a plan and what is free in, one choice or none out.

The fleet comes before all candidates, all of it or nothing; where it does not fit, candidates are tried as ever. A
replica of it that is lost is seated as the same part again first.
"""

from collections.abc import Sequence

from maveriq.contracts import Candidate, Lane, Plan
from maveriq.routing import lanes_of
from maveriq_allocator.budget import Budget, Clock, budgets
from maveriq_allocator.choosing import Choice, chosen
from maveriq_allocator.fleet import Fleet, Node
from maveriq_allocator.manner import Manner
from maveriq_allocator.seating import seat_all
from maveriq_allocator.seats import Seat

FLEET = -1  # rank of the plan's fleet: before its first candidate


def choose_with_fleet(
    plan: Plan,
    nodes: Sequence[Node],
    *,
    num_replicas: int | None = None,
    start: int = FLEET,
    manner: Manner | None = None,
    part: str = "",
    clock: Clock | None = None,
) -> Choice | None:
    """As `choose`, with the plan's fleet at rank FLEET.

    Args:
        part: GPU type of the part that a single replica is seated as; '': it is of none.
    """
    how = manner or Manner()
    tries = (chosen_with_fleet(plan, nodes, num_replicas, start, how, part, budget) for budget in budgets(clock))
    return next((choice for choice in tries if choice is not None), None)


def chosen_with_fleet(
    plan: Plan, nodes: Sequence[Node], num_replicas: int | None, start: int, manner: Manner, part: str, budget: Budget
) -> Choice | None:
    """The same with so much to look at, and no more."""
    wanted: Sequence[Candidate] = ()
    if start <= FLEET and plan.fleet is not None:
        wanted = [one for one in plan.fleet.parts if num_replicas is None or one.configuration.gpu_type == part]
    choice = _seated(plan, wanted, nodes, num_replicas, manner, budget) if wanted else None
    return choice or chosen(plan, nodes, num_replicas, max(0, start), manner, budget)


def _seated(
    plan: Plan, wanted: Sequence[Candidate], nodes: Sequence[Node], num_replicas: int | None, manner: Manner,
    budget: Budget,
) -> Choice | None:  # fmt: skip
    """Parts are of different GPU types, so none is in another's way."""
    seats: list[Seat] = []
    parts: list[Candidate] = []
    for part in wanted:
        own = [node for node in nodes if node.engine == part.configuration.engine]
        fleet = Fleet(own, manner.types(part), manner.preference)
        found = seat_all(part, plan.facts.num_layers, fleet, num_replicas or part.replicas, manner, budget)
        if found is None:
            return None
        seats += found
        parts += [part] * len(found)
    return Choice(FLEET, tuple(seats), tuple(parts))


def part_of(plan: Plan, gpu_type: str) -> str:
    """The GPU type where the plan's fleet has a part on it, else ''."""
    return gpu_type if plan.fleet is not None and gpu_type in plan.fleet.gpu_types else ""


def lanes_in(plan: Plan, candidate: Candidate, *, is_routed: bool) -> tuple[Lane, ...]:
    """Whose requests a replica of the candidate takes.

    Args:
        is_routed: the deployment's requests are routed by size.
    """
    if plan.fleet is None or not plan.fleet.is_shared or not is_routed:
        return ()
    return lanes_of(plan.fleet.routes, candidate.configuration.gpu_type)
