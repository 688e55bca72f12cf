"""What a workload asks of one slot and of one replica. Pure: workload in, tokens and rates out."""

import numpy as np

from maveriq.contracts import ModelFacts, Workload
from maveriq_planner.arrays import Array

_CONTEXT_STEP = 64  # tokens of a block of TensorRT-LLM's KV cache


def context_tokens(workload: Workload, facts: ModelFacts) -> int | None:
    """Of one slot: as asked, else twice the mean, rounded up, at most the model's own. None: the model has fewer."""
    mean = workload.input_tokens + workload.output_tokens
    if (workload.context_tokens or mean) > facts.max_context_tokens:
        return None
    rounded = -(-2 * mean // _CONTEXT_STEP) * _CONTEXT_STEP
    return workload.context_tokens or min(rounded, facts.max_context_tokens)


def decoding_tokens(workload: Workload) -> float:
    """That a decode step finds in the cache of each request, on average over its answer."""
    return workload.input_tokens + workload.output_tokens / 2


def share(workload: Workload, replicas: Array) -> tuple[Array, Array]:
    """What each of so many replicas gets: requests a ms, and the most in flight (inf: no bound)."""
    rate_per_ms = workload.request_rate_per_s / 1e3 / replicas
    if workload.concurrency is None:
        return rate_per_ms, np.full(len(replicas), np.inf)
    return rate_per_ms, np.ceil(workload.concurrency / replicas)
