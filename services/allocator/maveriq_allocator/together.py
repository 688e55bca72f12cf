"""Seats for several replicas that do not all find one after the other. Pure: a fleet in, all seats out.

One replica after the other is seated as well as can be for itself, which may leave many GPUs with a little each.
Here each node is filled so that what is left on its GPUs stays level; then, on a few nodes that may hold more than was
found, all their replicas are decided at once (`joint`), which is exact on small nodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from maveriq.contracts import Stage
from maveriq_allocator.budget import Budget
from maveriq_allocator.fleet import Fleet
from maveriq_allocator.joint import pack_many
from maveriq_allocator.packing import Fragment
from maveriq_allocator.screening import Screen, Shape

Replica = tuple[Stage, ...]


def seated_together(
    shape: Shape, fleet: Fleet, screen: Screen, num_replicas: int, found: dict[int, list[Replica]], budget: Budget
) -> dict[int, list[Replica]] | None:
    """The stages of all replicas by the node's index, or None where they were not found.

    Args:
        found: seats by the node's index that were found one after the other, beside one another.
    """
    best: dict[int, list[Replica]] = {}
    lacking = num_replicas
    for index in screen.promising():
        most = min(lacking, screen.most_on(index))
        replicas = found.get(index, [])[:most]
        if len(replicas) < most and not budget.is_late():
            replicas = max(replicas, list(_levelled_many(shape, fleet.usable(index), most)), key=len)
        if replicas:
            best[index] = replicas
            lacking -= len(replicas)
        if lacking == 0:
            return best
    return _improved(shape, fleet, screen, best, lacking, budget)


def _improved(
    shape: Shape, fleet: Fleet, screen: Screen, best: dict[int, list[Replica]], lacking: int, budget: Budget
) -> dict[int, list[Replica]] | None:
    """The nodes with most to gain first, as long as they may gain enough."""
    gains = {index: screen.most_on(index) - len(best.get(index, [])) for index in screen.promising()}
    most_first = sorted(gains, key=lambda index: -gains[index])[: budget.num_joint]
    for at, index in enumerate(most_first):
        if sum(gains[other] for other in most_first[at:]) < lacking or budget.is_late():
            return None
        budget.num_joint -= 1
        before = best.get(index, [])
        wanted = len(before) + min(lacking, gains[index])
        replicas = pack_many(shape, fleet.usable(index), wanted, budget)
        if len(replicas) > len(before):
            best[index] = replicas
            lacking -= len(replicas) - len(before)
        if lacking == 0:
            return best
    return None


def _levelled_many(shape: Shape, fragments: Sequence[Fragment], most: int) -> Iterator[Replica]:
    left = list(fragments)
    for _ in range(most):
        stages = levelled(shape, left)
        if stages is None:
            return
        yield stages
        held = {gpu: stage.reserved_bytes for stage in stages for gpu in stage.gpus}
        left = [replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in left]


def levelled(shape: Shape, fragments: Sequence[Fragment]) -> Replica | None:
    """On the richest GPUs, layer by layer where most is left; the ends too."""
    memory = shape.memory
    groups = _richest_groups(fragments, shape.pp, shape.tp)
    if len(groups) < shape.pp:
        return None
    if shape.pp == 1:
        needed = memory.of_stage(shape.num_layers, first=True, last=True)
        return (_stage(groups[0], shape.num_layers, needed),) if groups[0][-1].free_bytes >= needed else None
    left = [ranks[-1].free_bytes - memory.of_stage(1, first=False, last=False) for ranks in groups]
    first = max(range(shape.pp), key=lambda at: left[at])
    left[first] -= memory.first_bytes
    last = max((at for at in range(shape.pp) if at != first), key=lambda at: left[at])
    left[last] -= memory.last_bytes
    layers = [1] * shape.pp
    for _ in range(shape.num_layers - shape.pp):
        at = max((at for at in range(shape.pp) if layers[at] < shape.most_layers), key=lambda at: left[at])
        left[at] -= memory.layer_bytes
        layers[at] += 1
    if min(left) < 0:
        return None
    order = [first, *(at for at in range(shape.pp) if at not in (first, last)), last]
    return tuple(
        _stage(groups[at], layers[at], memory.of_stage(layers[at], first=at == first, last=at == last)) for at in order
    )


def _richest_groups(fragments: Sequence[Fragment], pp: int, tp: int) -> list[list[Fragment]]:
    """Ranks of one type together, the poorest last."""
    groups: list[list[Fragment]] = []
    for gpu_type in sorted({f.gpu_type for f in fragments}):
        rich = sorted((f for f in fragments if f.gpu_type == gpu_type), key=lambda f: (-f.free_bytes, f.gpu))
        groups += [rich[start : start + tp] for start in range(0, len(rich) - tp + 1, tp)]
    return sorted(groups, key=lambda ranks: -ranks[-1].free_bytes)[:pp]


def _stage(ranks: Sequence[Fragment], num_layers: int, held: int) -> Stage:
    return Stage(
        gpus=tuple(sorted(f.gpu for f in ranks)), num_layers=num_layers, reserved_bytes=held, node=ranks[0].node,
        gpu_type=ranks[0].gpu_type,
    )  # fmt: skip
