"""A trace as a histogram that an intent can carry. Pure: the text of a CSV file in, a histogram out."""

import numpy as np

from maveriq.contracts.provisioning import Histogram
from maveriq_planner.provisioning.traces import read_trace
from maveriq_planner.provisioning.workload import demand_of_trace, edges_of

BUCKETS = 6  # most edges of each axis, as `maveriq provision` has them


def histogram_of(text: str) -> Histogram:
    """With edges of the trace's own and its mean rate. Raises ProvisioningRefused."""
    trace = read_trace(text)
    inputs, outputs = edges_of(trace.input_tokens, BUCKETS), edges_of(trace.output_tokens, BUCKETS)
    demand = demand_of_trace(trace, inputs, outputs, trace.rate_per_s(None))
    shares = np.zeros((len(inputs), len(outputs)))
    for (row, column), rate in zip(demand.place, demand.rate_per_s.tolist(), strict=True):
        shares[row, column] = rate / demand.total_per_s
    return Histogram(
        input_edges=inputs, output_edges=outputs, distribution=tuple(map(tuple, shares.tolist())),
        request_rate_per_s=demand.total_per_s,
    )  # fmt: skip
