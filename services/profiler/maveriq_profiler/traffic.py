"""Whether a deployment is asked what it was planned for. Pure: a workload and what was served in, the drift out."""

from bisect import bisect_left
from collections.abc import Mapping
from math import sqrt
from uuid import UUID

from maveriq.contracts import Histogram, ServedRequests, TrafficDrifted, Workload

FASTER = 1.25  # times the planned rate: replicas are planned with less to spare
MOVED = 0.2  # share of the requests that have other sizes than planned (total variation)
LEAST_REQUESTS = 100  # fewer say nothing of a mix
_CALM = 0.5  # of either excess: what has drifted is back once it is below that share of it
_SURE = 3.0  # standard deviations of a Poisson count

Bucket = tuple[int, int]
"""Row and column of the histogram."""


def bucket_of(requests: ServedRequests, histogram: Histogram) -> Bucket:
    """Longer ones than the last edge are in the last bucket."""
    row = bisect_left(histogram.input_edges, requests.input_tokens)
    column = bisect_left(histogram.output_edges, requests.output_tokens)
    return min(row, len(histogram.input_edges) - 1), min(column, len(histogram.output_edges) - 1)


def drift(
    deployment_id: UUID, workload: Workload, histogram: Histogram, counts: Mapping[Bucket, int], over_s: float
) -> TrafficDrifted | None:
    """None: as planned, or too little was served to say."""
    seen, moved = _seen(histogram, counts, over_s)
    if seen is None:
        return None
    rate, planned = seen.request_rate_per_s, workload.request_rate_per_s
    is_faster = rate > FASTER * planned and (rate - planned) * over_s > _SURE * sqrt(planned * over_s)
    if not is_faster and moved <= MOVED:
        return None
    return TrafficDrifted(deployment_id=deployment_id, planned_per_s=planned, moved=moved, served=seen, over_s=over_s)


def is_calm(workload: Workload, histogram: Histogram, counts: Mapping[Bucket, int], over_s: float) -> bool:
    """Whether what drifted is as planned again, clearly."""
    seen, moved = _seen(histogram, counts, over_s)
    most = 1 + (FASTER - 1) * _CALM
    return seen is None or (seen.request_rate_per_s <= most * workload.request_rate_per_s and moved <= MOVED * _CALM)


def _seen(
    histogram: Histogram, counts: Mapping[Bucket, int], over_s: float
) -> tuple[Histogram | None, float]:  # fmt: skip
    """What was served, with the buckets that were planned for, and the share of it that is of other sizes."""
    total = sum(counts.values())
    if total < LEAST_REQUESTS:
        return None, 0.0
    shares = tuple(
        tuple(counts.get((row, column), 0) / total for column in range(len(histogram.output_edges)))
        for row in range(len(histogram.input_edges))
    )
    pairs = zip(sum(shares, ()), sum(histogram.distribution, ()), strict=True)
    moved = sum(max(0.0, now - planned) for now, planned in pairs)
    served = histogram.model_copy(update={"distribution": shares, "request_rate_per_s": total / over_s})
    return served, min(1.0, moved)
