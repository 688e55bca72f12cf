"""How much better than a placement another might be. Pure: stages and a bound in, a share out."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from maveriq.contracts import Stage
from maveriq_allocator.packing import NS_PER_MS, Fragment, Joined
from maveriq_allocator.screening import Key
from maveriq_allocator.strategies import Preference


def gap_of(key: Key, bound: Key) -> float:
    """By which share another may be better at most, in latency, or in cost where that is the same; 1 where what joins
    its ranks may be better.
    """
    if bound[0] != key[0]:
        return float(bound[0] < key[0])
    gap = 0.0
    for value, least in zip(key[1:], bound[1:], strict=True):
        if least > value:
            break
        gap = max(gap, (value - least) / max(1, value))
    return gap


def key_of(
    stages: Sequence[Stage], fragments: Sequence[Fragment], preference: Preference,
    speeds: Mapping[str, float] | None, node_cost: int,
) -> Key:  # fmt: skip
    """Of stages on one node's fragments."""
    there = {fragment.gpu: fragment for fragment in fragments}
    taken = [there[gpu] for stage in stages for gpu in stage.gpus]
    joined = max(_joined([there[gpu] for gpu in stage.gpus]) for stage in stages)
    layer_ns = {gpu_type: round(ms * NS_PER_MS) for gpu_type, ms in (speeds or {}).items()}
    latency_ns = sum(stage.num_layers * layer_ns.get(there[stage.gpus[0]].gpu_type, 0) for stage in stages)
    costs = preference.costs(np.array([f.free_bytes for f in taken]), np.array([f.utilisation for f in taken]))
    return joined, latency_ns, int(costs.sum()) + node_cost


def _joined(ranks: Sequence[Fragment]) -> Joined:
    """By what all of them reach one another."""
    pairs = [*combinations(ranks, 2)]
    for joined in (Joined.NVLINK, Joined.SWITCHES):
        if all(b.gpu in joined.reach(a) and a.gpu in joined.reach(b) for a, b in pairs):
            return joined
    return Joined.ANYHOW
