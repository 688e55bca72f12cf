"""Which GPU type answers requests of which size, in words. Pure: routes and fleets in, lines out."""

from collections.abc import Iterator, Sequence

from maveriq.cli.figures import counted_shape, digits, gpus_of
from maveriq.contracts import Deployment, Intent, Objective, PlannedFleet, Route


def routes_lines(routes: Sequence[Route]) -> Iterator[str]:
    """`up to 500 in, 100 out (72 %): L4, over: A100`, one a bucket."""
    for one in routes:
        first = [s for s in one.served_by if s.share > 0] or one.served_by[:1]
        rest = [s.gpu_type for s in one.served_by if s not in first]
        named = [_short(s.gpu_type) + (f" {s.share:.0%}" if len(first) > 1 else "") for s in first]
        over = f", over: {', '.join(map(_short, rest))}" if rest else ""
        size = f"up to {digits(one.input_up_to, 6)} in, {digits(one.output_up_to, 6)} out"
        yield f"{size} ({one.share:.0%}): {' + '.join(named)}{over}"


def fleet_words(fleet: PlannedFleet) -> str:
    """What it is made of, and what that is worth."""
    parts = " + ".join(f"{counted_shape(part)} on {_short(gpus_of(part))}" for part in fleet.parts)
    price = "" if fleet.price_per_hour is None else f", {digits(fleet.price_per_hour, 4)}/h"
    if not fleet.is_shared:
        return f"{parts}{price}, for all sizes of requests"
    if fleet.single_score is None:
        return f"{parts}{price}; no type serves all sizes alone"
    return f"{parts}{price}, {1 - fleet.score / fleet.single_score:.0%} less than the best type alone"


ONLY_FLEET = "no configuration of one GPU type meets it for the mean request: the fleet is placed whole, or waits"


def no_fleet_words(intent: Intent) -> str:
    """Why a plan for requests of several sizes has no fleet."""
    if intent.replicas is not None:
        return "no fleet: GPU types share requests by size only where --replicas is left open"
    if intent.objective in (Objective.MIN_LATENCY, Objective.MAX_THROUGHPUT):
        return f"no fleet: GPU types do not share requests by size under {intent.objective}"
    return "no fleet: what was free does not serve all sizes within the limits; below is planned for the mean"


def is_fleet(deployment: Deployment) -> bool:
    """Whether it runs, or where nothing is placed yet is to run, as its plan's fleet."""
    planned = deployment.plan is not None and deployment.plan.fleet is not None and deployment.plan.fleet.is_shared
    return planned and (not deployment.placements or any(at.lanes for at in deployment.placements))


def _short(gpu_type: str) -> str:
    return gpu_type.replace("NVIDIA ", "")
