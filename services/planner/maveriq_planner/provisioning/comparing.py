"""A fleet against others: each GPU type alone, other request rates. Pure: units and problem in, prices out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from maveriq_planner.provisioning.fleet_mix import Limits, Mix, cheapest
from maveriq_planner.provisioning.problem import Array, Problem
from maveriq_planner.provisioning.units import Pool, Unit
from maveriq_planner.provisioning.workload import Demand

TIMES = tuple(1.2**step for step in range(-12, 7))
"""The workload's rate, on the curve: a ninth to three times."""


@dataclass(frozen=True, slots=True)
class AtRate:
    rate_per_s: float
    price: float | None
    single: Mapping[str, float | None]
    counts: Array
    """[P]"""


def alone(units: Sequence[Unit], problem: Problem, limits: Limits) -> dict[str, Mix | None]:
    """The cheapest fleet of each GPU type, from nothing; None: it cannot serve the load alone."""
    found: dict[str, Mix | None] = {}
    for kind in dict.fromkeys(unit.gpu.kind for unit in units):
        chosen = np.array([u for u, unit in enumerate(units) if unit.gpu.kind == kind], dtype=np.intp)
        part = replace(problem.take(chosen), change=None)
        able = np.isfinite(part.load).any(axis=0).all()
        mix = cheapest(part, limits) if able else None
        if mix is not None:
            counts = np.zeros(problem.num_units)
            counts[chosen] = mix.counts
            mix = replace(mix, counts=counts)
        found[kind] = mix
    return found


def fleets(singles: Mapping[str, Mix | None]) -> list[Array]:
    """To begin a search with: a mix is never dearer than one type."""
    return [mix.counts for mix in singles.values() if mix is not None]


def curve(
    units: Sequence[Unit], pools: Sequence[Pool], problem: Problem, demand: Demand, limits: Limits
) -> tuple[AtRate, ...]:
    """Each from nothing, with a share of the time limit."""
    each = replace(limits, seconds=limits.seconds / len(TIMES))
    found: list[AtRate] = []
    for times in TIMES:
        scaled = replace(problem, load=problem.load * times, change=None)
        singles = alone(units, scaled, each)
        mix = cheapest(scaled, each, fleets(singles))
        prices = {kind: None if one is None else one.objective for kind, one in singles.items()}
        counts = np.zeros(len(pools)) if mix is None else scaled.of_pools(mix.counts)
        price = None if mix is None else mix.objective
        found.append(AtRate(demand.total_per_s * times, price, prices, counts))
    return tuple(found)
