"""Which GPUs a pipeline's stages take. Pure: free bytes in, the cheapest blocks that hold the model out.

A dynamic programme over the GPUs: each is passed over, or begins a stage of `tp` neighbours. Its value is the least sum
of free bytes taken for every (stages, first taken, last taken, layers held); the bytes that a replica holds are the
same wherever it sits, so the least sum taken leaves the least stranded. Exact; one numpy pass over 16 GPUs takes a
millisecond.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import StageMemory

_NEVER = np.int64(2**61)  # more bytes than any node has, and room to add without overflow


@dataclass(frozen=True, slots=True)
class Block:
    """One stage: `tp` GPUs that are neighbours in the order of free bytes."""

    start: int
    """Index of its poorest GPU."""
    capacity: int
    """Layers that it can hold, at most the limit asked for."""
    first: bool
    last: bool


def cheapest_blocks(
    memory: StageMemory, num_layers: int, *, pp: int, tp: int, most_layers: int, free_bytes: Sequence[int]
) -> list[Block] | None:
    """Blocks that together hold `num_layers`, with the least free bytes taken; None where there are none.

    Args:
        most_layers: of one stage.
        free_bytes: of each GPU, smallest first.
    """
    best = np.full((len(free_bytes) + 1, pp + 1, 2, 2, num_layers + 1), _NEVER, dtype=np.int64)
    best[0, 0, 0, 0, 0] = 0
    for start in range(len(free_bytes)):
        np.minimum(best[start + 1], best[start], out=best[start + 1])
        for block in _blocks_at(memory, start, pp, tp, most_layers, free_bytes):
            _take(best, block, tp, sum(free_bytes[start : start + tp]))
    if best[-1, pp, 1, 1, num_layers] >= _NEVER:
        return None
    return _walk_back(best, memory, num_layers, pp, tp, most_layers, free_bytes)


def _blocks_at(
    memory: StageMemory, start: int, pp: int, tp: int, most_layers: int, free_bytes: Sequence[int]
) -> Iterator[Block]:
    if start + tp > len(free_bytes):
        return
    for first, last in ((True, True),) if pp == 1 else ((False, False), (True, False), (False, True)):
        fixed_bytes = memory.of_stage(0, first=first, last=last)
        layers = min(most_layers, (free_bytes[start] - fixed_bytes) // memory.layer_bytes)
        if layers >= 1:
            yield Block(start, layers, first, last)


def _before(block: Block) -> Iterator[tuple[int, int]]:
    """(first taken, last taken) from which this block can be added."""
    for first in (0,) if block.first else (0, 1):
        for last in (0,) if block.last else (0, 1):
            yield first, last


def _take(best: NDArray[np.int64], block: Block, tp: int, cost_bytes: int) -> None:
    top = best.shape[-1] - 1
    for first, last in _before(block):
        source = best[block.start, :-1, first, last] + cost_bytes  # (pp, layers + 1)
        target = best[block.start + tp, 1:, first | block.first, last | block.last]
        reach = target[:, block.capacity :]
        np.minimum(reach, source[:, : top + 1 - block.capacity], out=reach)
        target[:, top] = np.minimum(target[:, top], source[:, top - block.capacity :].min(axis=1))  # more than enough


def _walk_back(
    best: NDArray[np.int64], memory: StageMemory, num_layers: int, pp: int, tp: int, most_layers: int,
    free_bytes: Sequence[int],
) -> list[Block]:  # fmt: skip
    taken: list[Block] = []
    at, num, first, last, layers = len(free_bytes), pp, 1, 1, num_layers
    while num:
        value = best[at, num, first, last, layers]
        if best[at - 1, num, first, last, layers] == value:
            at -= 1
            continue
        block, first, last, layers = next(
            (block, *taken_before, n)
            for block in _blocks_at(memory, at - tp, pp, tp, most_layers, free_bytes)
            for taken_before in _before(block)
            if (taken_before[0] | block.first, taken_before[1] | block.last) == (first, last)
            for n in _layers_before(layers, block.capacity, num_layers)
            if best[at - tp, num - 1, *taken_before, n] + sum(free_bytes[at - tp : at]) == value
        )
        taken.append(block)
        at, num = at - tp, num - 1
    return taken


def _layers_before(layers: int, capacity: int, num_layers: int) -> range:
    """Layers held before a block was added; the top row also holds everything beyond it."""
    if layers < num_layers:
        return range(layers - capacity, layers - capacity + 1) if layers >= capacity else range(0)
    return range(num_layers - capacity, num_layers + 1)
