"""Uneven pipeline stages for fragmented memory. Pure: one node's fragments in, stages out, or what was short.

The rules, in order: it fits; the largest stage has as few layers as can be, because a pipeline runs at the pace
of its slowest stage; the fragments taken are the smallest that do, so that large ones stay whole for others.
Each is exact, whichever GPU comes first or last: `tests/unit/allocator` holds them to brute force.

Two facts make it cheap. All ranks of a stage hold the same bytes, so the poorest of its GPUs decides, and sorted
by free bytes the ranks of a stage are neighbours. And a richer GPU in the same place never holds fewer layers, so
whether (and how evenly) the model fits is decided by the richest pp * tp GPUs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from maveriq.contracts import Stage, StageMemory
from maveriq_allocator.selection import Block, cheapest_blocks

MAX_FRAGMENTS = 32  # of one node: on a node with more (declared CPU devices), only the richest are looked at


@dataclass(frozen=True, slots=True)
class Fragment:
    """Free bytes of one GPU."""

    gpu: str
    gpu_type: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Packing:
    """One replica on one node's fragments."""

    stages: tuple[Stage, ...]
    largest_stage: int
    """Layers of the largest stage."""
    stranded_bytes: int
    """What stays free on the GPUs taken."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a replica does not fit."""

    reason: str


def pack(
    memory: StageMemory, num_layers: int, *, pp: int, tp: int, fragments: Sequence[Fragment], tight: bool = False
) -> Packing | Shortfall:
    """Stages for one replica on `fragments`, all of one node and one GPU type.

    Args:
        tight: take the smallest fragments that do before making the largest stage small: for the
            case that several replicas only fit when each leaves the large fragments to the others.
    """
    if pp > num_layers:
        return Shortfall(f"{num_layers} layers cannot make {pp} stages")
    if len(fragments) < pp * tp:
        return Shortfall(f"{pp * tp} GPUs needed, {len(fragments)} there")
    richest = sorted(fragments, key=lambda f: (-f.free_bytes, f.gpu))[: max(MAX_FRAGMENTS, pp * tp)]
    largest = smallest_largest_stage(memory, num_layers, pp=pp, tp=tp, free_bytes=[f.free_bytes for f in richest])
    if largest is None:
        return Shortfall(f"{num_layers} layers and both ends do not fit the {pp * tp} largest fragments")
    poorest_first = richest[::-1]
    blocks = cheapest_blocks(
        memory, num_layers, pp=pp, tp=tp, most_layers=num_layers if tight else largest,
        free_bytes=[f.free_bytes for f in poorest_first],
    )  # fmt: skip
    assert blocks is not None, "the richest fragments hold the model, so some fragments do"
    return _packing(memory, num_layers, tp, poorest_first, _in_pipeline_order(blocks))


def smallest_largest_stage(
    memory: StageMemory, num_layers: int, *, pp: int, tp: int, free_bytes: Sequence[int]
) -> int | None:
    """Layers of the largest stage, made as small as these GPUs allow; None: the model does not fit.

    Args:
        free_bytes: of at least pp * tp GPUs, largest first.
    """
    poorest = [free_bytes[stage * tp + tp - 1] for stage in range(pp)]  # of each stage's ranks
    if pp == 1:
        return num_layers if capacity(memory, poorest[0], first=True, last=True) >= num_layers else None
    middle = [capacity(memory, free, first=False, last=False) for free in poorest]
    needed_bytes = pp * memory.runtime_bytes + num_layers * memory.layer_bytes + memory.first_bytes + memory.last_bytes
    if min(middle) < 1 or sum(middle) < num_layers or sum(poorest) < needed_bytes:  # most nodes, in a full cluster
        return None
    firsts = [capacity(memory, free, first=True, last=False) for free in poorest]
    lasts = [capacity(memory, free, first=False, last=True) for free in poorest]
    best: int | None = None
    even = -(-num_layers // pp)
    for first, last in permutations(range(pp), 2):
        capacities = [*middle]
        capacities[first], capacities[last] = firsts[first], lasts[last]
        if min(firsts[first], lasts[last]) < 1:
            continue
        if best is not None and sum(min(c, best - 1) for c in capacities) < num_layers:
            continue
        level = _water_level(capacities, num_layers)
        if level == even:
            return even
        best = level if level is not None else best
    return best


def capacity(memory: StageMemory, free_bytes: int, *, first: bool, last: bool) -> int:
    """Layers that a stage can hold on a GPU; below 1 where it cannot be a stage there."""
    return (free_bytes - memory.of_stage(0, first=first, last=last)) // memory.layer_bytes


def _water_level(capacities: Sequence[int], num_layers: int) -> int | None:
    """The smallest n with sum(min(capacity, n)) >= num_layers."""
    if sum(capacities) < num_layers:
        return None
    low, high = -(-num_layers // len(capacities)), num_layers
    while low < high:
        middle = (low + high) // 2
        if sum(min(c, middle) for c in capacities) >= num_layers:
            high = middle
        else:
            low = middle + 1
    return low


def split(capacities: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layers of each stage, at least 1 and at most its capacity, the largest as small as can be.

    What could be left out is left out at the end: the last stage also computes the lm_head.
    """
    level = _water_level(capacities, num_layers)
    assert level is not None, "the stages were chosen to hold the model"
    layers = [min(c, level) for c in capacities]
    surplus = sum(layers) - num_layers
    for stage in reversed(range(len(layers))):
        if surplus and layers[stage] == level:
            layers[stage] -= 1
            surplus -= 1
    return tuple(layers)


def _in_pipeline_order(blocks: Sequence[Block]) -> list[Block]:
    """First stage, the others from rich to poor, last stage."""
    return sorted(blocks, key=lambda b: (not b.first, b.last, -b.start))


def _packing(
    memory: StageMemory, num_layers: int, tp: int, fragments: Sequence[Fragment], blocks: Sequence[Block]
) -> Packing:
    layers = split([block.capacity for block in blocks], num_layers)
    stages: list[Stage] = []
    stranded = 0
    for block, n in zip(blocks, layers, strict=True):
        ranks = fragments[block.start : block.start + tp]
        held = memory.of_stage(n, first=block.first, last=block.last)
        stranded += sum(f.free_bytes - held for f in ranks)
        stages.append(Stage(gpus=tuple(sorted(f.gpu for f in ranks)), num_layers=n, reserved_bytes=held))
    return Packing(tuple(stages), max(layers), stranded)
