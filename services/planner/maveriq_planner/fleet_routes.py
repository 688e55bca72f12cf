"""Which GPU type answers which bucket. Pure: who serves how much of what, and at which cost, in; routes out."""

from collections.abc import Sequence

from maveriq.contracts import Route, ServedBy
from maveriq_planner.arrays import Array
from maveriq_planner.provisioning.workload import Demand

_NOTHING = 1e-6  # of a bucket: less is rounding


def routes_of(demand: Demand, gpu_types: Sequence[str], shares: Array, costs: Array) -> tuple[Route, ...]:
    """Those that serve a bucket by their share of it; then the others, which only take what is over, by cost.

    Args:
        shares: [U, B]
        costs: [U, B], of serving all of a bucket; inf: not within the SLO.
    """
    total = demand.total_per_s
    return tuple(
        Route(
            input_up_to=float(demand.input_up_to[bucket]), output_up_to=float(demand.output_up_to[bucket]),
            share=min(1.0, float(rate) / total),
            served_by=_served_by(gpu_types, shares[:, bucket].tolist(), costs[:, bucket].tolist()),
        )
        for bucket, rate in enumerate(demand.rate_per_s.tolist())
    )  # fmt: skip


def _served_by(gpu_types: Sequence[str], shares: Sequence[float], costs: Sequence[float]) -> tuple[ServedBy, ...]:
    told = [share if share > _NOTHING else 0.0 for share in shares]
    order = sorted(range(len(told)), key=lambda unit: (-told[unit], costs[unit]))
    return tuple(ServedBy(gpu_type=gpu_types[unit], share=min(1.0, told[unit])) for unit in order)
