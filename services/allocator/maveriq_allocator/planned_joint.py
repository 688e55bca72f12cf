"""Several replicas of a planned pipeline on one node at once. Pure: stages and fragments in, each replica's GPUs out.

One replica after the other can take what another needed. Here is decided how many replicas have each stage on each GPU,
as an integer programme (HiGHS): every stage is somewhere once for each replica, no GPU holds more bytes than it has nor
more stages than there are replicas. That is exact: stages and GPUs, with an edge for each stage of a replica on a GPU,
are a bipartite graph in which nobody has more edges than there are replicas, and its edges fall into that many
matchings (König, 1916).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linear_sum_assignment, milp
from scipy.sparse import coo_array

from maveriq.contracts import PlannedStage
from maveriq_allocator.budget import Budget
from maveriq_allocator.joint import LIMIT_REACHED
from maveriq_allocator.packing import Fragment

MAX_GPUS = 32  # of a node: more are not decided at once

Ints = NDArray[np.int64]


def pack_planned(
    stages: Sequence[PlannedStage], fragments: Sequence[Fragment], most: int, budget: Budget
) -> list[tuple[Fragment, ...]]:
    """For as many replicas as fit beside one another, and no more than `most`, the GPU of each stage."""
    if most < 1 or not len(stages) <= len(fragments) <= MAX_GPUS:
        return []
    edges = _edges(stages, fragments, most, budget)
    return [] if edges is None else [tuple(fragments[gpu] for gpu in gpus) for gpus in _matchings(edges)]


def _edges(stages: Sequence[PlannedStage], fragments: Sequence[Fragment], most: int, budget: Budget) -> Ints | None:
    """Replicas that have a stage on a GPU, [stages, GPUs]; variables are these, and the number of replicas."""
    num_stages, num_gpus = len(stages), len(fragments)
    count = num_stages * num_gpus
    sizes = np.array([stage.reserved_bytes for stage in stages], dtype=np.float64)
    rows: list[dict[int, float]] = []
    low: list[float] = []
    high: list[float] = []
    for stage in range(num_stages):
        rows.append({stage * num_gpus + gpu: 1.0 for gpu in range(num_gpus)} | {count: -1.0})
        low.append(0)
        high.append(0)
    scale = float(sizes.max())  # numbers near 1 are what a solver is exact with
    for gpu, fragment in enumerate(fragments):
        rows.append({stage * num_gpus + gpu: sizes[stage] / scale for stage in range(num_stages)})
        rows.append({stage * num_gpus + gpu: 1.0 for stage in range(num_stages)} | {count: -1.0})
        low += -np.inf, -np.inf
        high += fragment.free_bytes / scale, 0
    columns = [column for row in rows for column in row]
    values = [value for row in rows for value in row.values()]
    at = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    matrix = coo_array((values, (at, columns)), shape=(len(rows), count + 1)).tocsr()
    possible = [float(most * _fits(stage, fragment)) for stage in stages for fragment in fragments]
    found = milp(
        np.array([0.0] * count + [-1.0]), constraints=LinearConstraint(matrix, low, high),
        integrality=np.ones(count + 1, dtype=np.int64), bounds=Bounds(0, np.array([*possible, float(most)])),
        options={"time_limit": budget.joint_s()},
    )  # fmt: skip
    budget.was_short |= found.status == LIMIT_REACHED
    if found.x is None:
        return None
    edges: Ints = np.rint(found.x[:count]).astype(np.int64).reshape(num_stages, num_gpus)
    exact = np.array([stage.reserved_bytes for stage in stages], dtype=np.int64) @ edges
    return edges if (exact <= [max(0, f.free_bytes) for f in fragments]).all() else None


def _fits(stage: PlannedStage, fragment: Fragment) -> bool:
    return stage.gpu_type == fragment.gpu_type and stage.reserved_bytes <= fragment.free_bytes


def _matchings(edges: Ints) -> Iterator[list[int]]:
    """The GPU of each stage, for one replica after the other.

    With stages that do not exist, as many as there are GPUs more, every vertex has an edge for each replica; such a
    graph has a perfect matching, and what is left without it is such a graph again.
    """
    num_stages, num_gpus = edges.shape
    num_replicas = int(edges[0].sum())
    padded = np.zeros((num_gpus, num_gpus), dtype=np.int64)
    padded[:num_stages] = edges
    spare = num_replicas - edges.sum(axis=0)
    for row in range(num_stages, num_gpus):
        wanted = num_replicas
        for gpu in range(num_gpus):
            padded[row, gpu] = min(wanted, spare[gpu])
            wanted -= padded[row, gpu]
            spare[gpu] -= padded[row, gpu]
    for _ in range(num_replicas):
        stages, gpus = linear_sum_assignment(padded > 0, maximize=True)
        padded[stages, gpus] -= 1
        yield [int(gpu) for gpu in gpus[:num_stages]]
