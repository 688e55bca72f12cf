"""A plan whose requests two GPU types share by size: short ones the small type's, long ones the large type's."""

from maveriq.contracts import Candidate, Lane, Placement, PlannedFleet, Route, ServedBy
from maveriq.routing import lanes_of
from tests.fakes import CANDIDATE, PLAN, placement

SMALL, LARGE = "NVIDIA L4", "NVIDIA A100-SXM4-80GB"

ROUTES = (
    Route(
        input_up_to=100, output_up_to=50, share=0.8,
        served_by=(ServedBy(gpu_type=SMALL, share=1), ServedBy(gpu_type=LARGE, share=0)),
    ),
    Route(
        input_up_to=1000, output_up_to=500, share=0.2,
        served_by=(ServedBy(gpu_type=LARGE, share=1), ServedBy(gpu_type=SMALL, share=0)),
    ),
)  # fmt: skip


def part(gpu_type: str, replicas: int = 1) -> Candidate:
    configuration = CANDIDATE.configuration.model_copy(update={"gpu_type": gpu_type})
    return CANDIDATE.model_copy(update={"configuration": configuration, "replicas": replicas})


FLEET = PlannedFleet(
    parts=(part(SMALL, 2), part(LARGE)), routes=ROUTES, score=4.0, bound=4.0, single_score=6.0, price_per_hour=4.0,
)  # fmt: skip

FLEET_PLAN = PLAN.model_copy(update={"fleet": FLEET})


def lanes(gpu_type: str) -> tuple[Lane, ...]:
    return lanes_of(ROUTES, gpu_type)


def routed(gpu_type: str, replica: int = 0, token: str = "t0", node: str = "n1") -> Placement:
    """A replica of the fleet's part on this type."""
    return placement(replica, token, node).model_copy(update={"candidate": part(gpu_type), "lanes": lanes(gpu_type)})
