"""Which GPUs to rent for a workload, and what goes where. Pure: workload, catalogue, terms in, cheapest fleet out.

The steps: buckets of like requests (provisioning/workload.py), what each rentable instance bears of them
(provisioning/law_throughput.py, or the catalogue's own profile), the cheapest whole numbers of instances
(provisioning/fleet_mix.py), who serves whom (provisioning/routing.py), and a check of it all by plain sums.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maveriq.contracts.provisioning import Catalogue, Fleet, ProvisioningRefused, ProvisioningRequest
from maveriq_planner.provisioning.asked import asked_of
from maveriq_planner.provisioning.checking import violations
from maveriq_planner.provisioning.comparing import alone, curve, fleets
from maveriq_planner.provisioning.fleet_mix import Limits, Mix, cheapest
from maveriq_planner.provisioning.infeasible import reason
from maveriq_planner.provisioning.problem import Array, Problem
from maveriq_planner.provisioning.routing import balanced
from maveriq_planner.provisioning.telling import told
from maveriq_planner.provisioning.units import pools_of, problem_of, units_of


class Unsound(ProvisioningRefused):
    """A fleet does not pass its check: a fault of ours, never of the input."""

    def __init__(self, wrong: Sequence[str]) -> None:
        problem = f"the fleet that was found does not pass its check: {'; '.join(wrong)}"
        super().__init__("fleet", problem, "report it, with the files that were given", code="unsound")


@dataclass(frozen=True, slots=True)
class Solved:
    """A fleet in numbers, checked."""

    mix: Mix
    shares: Array  # [U, B]


def provision(request: ProvisioningRequest, shipped: Catalogue, clock: Callable[[], float]) -> Fleet:
    """
    Args:
        shipped: the catalogue where the request brings none.
        clock: seconds since whenever, for the time limit.

    Raises:
        ProvisioningRefused: the question is wrong, or nothing does what it asks.
    """
    asked, terms = asked_of(request, shipped), request.terms
    pools = pools_of(asked.gpus, terms)
    units = units_of(pools, asked.ways)
    problem = problem_of(units, pools, asked.demand, terms)
    limits = Limits(terms.time_limit_s, clock)
    singles = alone(units, problem, limits)
    solved = solve(problem, limits, fleets(singles))
    if solved is None:
        raise reason(problem, asked.demand)
    rates = curve(units, pools, problem, asked.demand, limits) if request.curve else ()
    return told(asked, terms, pools, units, problem, solved.mix, solved.shares, singles, rates)


def solve(problem: Problem, limits: Limits, known: Iterable[Array] = ()) -> Solved | None:
    """The cheapest fleet and its routing, checked. None: there is none, or none was found in time.

    Args:
        known: fleets that do, to begin with.
    """
    if not np.isfinite(problem.load).any(axis=0).all():
        return None
    mix = cheapest(problem, limits, known)
    if mix is None:
        return None
    routed = mix.routing or balanced(problem, mix.counts)
    shares = np.zeros(problem.load.shape) if routed is None else routed.shares
    wrong = list(violations(problem, mix.counts, shares, _after_loss(problem, mix.counts)))
    if wrong:
        raise Unsound(wrong)
    return Solved(mix, shares)


def _after_loss(problem: Problem, counts: Array) -> dict[int, Array]:
    """Who serves whom after one unit of each kind was lost."""
    found: dict[int, Array] = {}
    for unit in np.flatnonzero(counts > 0).tolist() if problem.spare else ():
        left = counts.copy()
        left[unit] -= 1
        again = balanced(problem, left)
        if again is not None:
            found[unit] = again.shares
    return found
