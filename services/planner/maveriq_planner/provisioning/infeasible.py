"""Why no fleet does. Pure: a problem that has none in, the reason and what would help out."""

import numpy as np

from maveriq.contracts.provisioning import ProvisioningRefused
from maveriq_planner.provisioning.highs import minimum
from maveriq_planner.provisioning.problem import Problem, Rows
from maveriq_planner.provisioning.workload import Demand

_SHOWN = 3


def reason(problem: Problem, demand: Demand) -> ProvisioningRefused:
    nobody = np.flatnonzero(~np.isfinite(problem.load).any(axis=0))
    if len(nobody):
        sizes = [
            f"{demand.input_tokens[b]:.0f} prompt and {demand.output_tokens[b]:.0f} output tokens"
            for b in nobody[:_SHOWN]
        ]
        more = f", and {len(nobody) - _SHOWN} more" if len(nobody) > _SHOWN else ""
        return ProvisioningRefused(
            "throughput", f"nothing in the catalogue serves requests of {'; '.join(sizes)}{more}",
            "add a GPU that can, or relax the SLO", code="infeasible",
        )  # fmt: skip
    use = cap_use(problem)
    if use > 1:
        return ProvisioningRefused(
            "available", f"all that is available bears {1 / use:.1%} of the load",
            "raise what is available, add another GPU, or plan for less", code="infeasible",
        )  # fmt: skip
    extra = " and lose any one of them" if problem.spare else ""
    return ProvisioningRefused(
        "available", f"no whole numbers of what is available bear the load{extra}, or none was found in time",
        "raise what is available, or the time limit", code="infeasible",
    )  # fmt: skip


def cap_use(problem: Problem) -> float:
    """Share of what is available that the load needs, were instances divisible; 0 where nothing is capped."""
    capped = np.flatnonzero(np.isfinite(problem.caps))
    units, buckets = np.nonzero(np.isfinite(problem.load))
    x = 1 + np.arange(len(units))
    rows = Rows()
    rows.add(problem.load.shape[1], 1.0, 1.0, (buckets, x, np.ones(len(x))))
    place = np.full(len(problem.caps), -1)
    place[capped] = np.arange(len(capped))
    inside = place[problem.pools[units]] >= 0
    loads = problem.load[units, buckets][inside]
    zeros = np.zeros(len(capped), dtype=np.intp)
    rows.add(
        len(capped), -np.inf, 0.0,
        (place[problem.pools[units[inside]]], x[inside], loads), (np.arange(len(capped)), zeros, -problem.caps[capped]),
    )  # fmt: skip
    cost = np.zeros(1 + len(x))
    cost[0] = 1.0
    found = minimum(rows.model(cost, np.full(len(cost), np.inf), 0))
    return np.inf if found is None else found.objective
