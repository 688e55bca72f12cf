"""How many layers each stage gets of the GPUs taken. Pure: capacities in, stages as even as they allow out.

A pipeline with several requests in flight runs at the pace of its slowest stage.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from maveriq.contracts import StageMemory
from maveriq_allocator.selection import Block


def evenest(
    memory: StageMemory, blocks: Sequence[Block], free_bytes: Sequence[int], num_layers: int, most_layers: int
) -> Sequence[Block]:
    """The same GPUs, with first and last stage where the largest stage is smallest."""
    best, lowest = blocks, num_layers + 1
    for first, last in permutations(range(len(blocks)), 2):
        capacities = [
            min(most_layers, capacity(memory, free, first=at == first, last=at == last))
            for at, free in enumerate(free_bytes)
        ]
        if min(capacities) < 1 or sum(min(c, lowest - 1) for c in capacities) < num_layers:
            continue
        lowest = _water_level(capacities, num_layers)
        best = [
            replace(block, capacity=held, first=at == first, last=at == last)
            for at, (block, held) in enumerate(zip(blocks, capacities, strict=True))
        ]
        if lowest == -(-num_layers // len(blocks)):
            break
    return best


def capacity(memory: StageMemory, free_bytes: int, *, first: bool, last: bool) -> int:
    """Layers that a stage can hold on a GPU; below 1 where it cannot be a stage there."""
    return (free_bytes - memory.of_stage(0, first=first, last=last)) // memory.layer_bytes


def _water_level(capacities: Sequence[int], num_layers: int) -> int:
    """The smallest n with sum(min(capacity, n)) >= num_layers."""
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
    assert len(capacities) <= num_layers <= sum(capacities), "the stages were chosen to hold the model"
    level = _water_level(capacities, num_layers)
    layers = [min(c, level) for c in capacities]
    surplus = sum(layers) - num_layers
    for stage in reversed(range(len(layers))):
        if surplus and layers[stage] == level:
            layers[stage] -= 1
            surplus -= 1
    return tuple(layers)
