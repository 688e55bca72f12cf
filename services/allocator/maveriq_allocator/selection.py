"""Which GPUs a pipeline's stages take. Pure: free bytes and costs in, the cheapest blocks that hold the model out.

A dynamic programme over the GPUs: each is passed over, or begins a stage of `tp` neighbours. Its value is the least
cost for every (stages, first taken, last taken, layers held). GPUs of one speed share a programme; `mixing` puts those
of several speeds together. Exact wherever cheaper GPUs are poorer ones, and for tp = 1 always: one numpy pass over
16 GPUs takes a millisecond.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import StageMemory

NEVER = np.int64(2**61)  # more than any replica costs, and room to add without overflow

Costs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Row:
    """GPUs that can be ranks of one stage together, poorest first."""

    free_bytes: tuple[int, ...]
    costs: tuple[int, ...]
    """Of taking each."""


@dataclass(frozen=True, slots=True)
class Block:
    """One stage: `tp` GPUs that are neighbours in a row."""

    start: int
    """Index of its poorest GPU, all rows in one."""
    capacity: int
    """Layers that it can hold, at most the limit asked for."""
    first: bool
    last: bool


class Selection:
    """The programme of some rows of equal speed."""

    def __init__(
        self, memory: StageMemory, num_layers: int, *, pp: int, tp: int, most_layers: int, rows: Sequence[Row]
    ) -> None:
        """Args:
        most_layers: of one stage.
        """
        self._tp, self._pp, self._num_layers = tp, pp, num_layers
        self._costs = [cost for row in rows for cost in row.costs]
        self._blocks = list(_blocks(memory, pp, tp, most_layers, rows))
        self._least = self._run()

    @property
    def least(self) -> Costs:
        """[stages, first taken, last taken, layers held]: the last index also stands for everything beyond it."""
        least: Costs = self._least[-1]
        return least

    def _run(self) -> Costs:
        num_gpus = len(self._costs)
        least = np.full((num_gpus + 1, self._pp + 1, 2, 2, self._num_layers + 1), NEVER, dtype=np.int64)
        least[0, 0, 0, 0, 0] = 0
        for start in range(num_gpus):
            np.minimum(least[start + 1], least[start], out=least[start + 1])
            for block in self._blocks[start]:
                _take(least, block, self._tp, self._cost(start))
        return least

    def _cost(self, start: int) -> int:
        return sum(self._costs[start : start + self._tp])

    def blocks(self, num_stages: int, first: int, last: int, layers: int) -> list[Block]:
        """The blocks behind one value of `least`."""
        taken: list[Block] = []
        at, tp, least = len(self._costs), self._tp, self._least
        while num_stages:
            value = least[at, num_stages, first, last, layers]
            if least[at - 1, num_stages, first, last, layers] == value:
                at -= 1
                continue
            block, first, last, layers = next(
                (block, *before, n)
                for block in self._blocks[at - tp]
                for before in _before(block)
                if (before[0] | block.first, before[1] | block.last) == (first, last)
                for n in _layers_before(layers, block.capacity, self._num_layers)
                if least[at - tp, num_stages - 1, *before, n] + self._cost(at - tp) == value
            )
            taken.append(block)
            at, num_stages = at - tp, num_stages - 1
        return taken


def _blocks(
    memory: StageMemory, pp: int, tp: int, most_layers: int, rows: Sequence[Row]
) -> Iterator[tuple[Block, ...]]:
    """The blocks that can begin at each GPU."""
    before = 0
    for row in rows:
        for start, free_bytes in enumerate(row.free_bytes):
            fits = start + tp <= len(row.free_bytes)
            yield tuple(_blocks_at(memory, before + start, pp, most_layers, free_bytes)) if fits else ()
        before += len(row.free_bytes)


def _blocks_at(memory: StageMemory, start: int, pp: int, most_layers: int, free_bytes: int) -> Iterator[Block]:
    for first, last in ((True, True),) if pp == 1 else ((False, False), (True, False), (False, True)):
        layers = min(most_layers, (free_bytes - memory.of_stage(0, first=first, last=last)) // memory.layer_bytes)
        if layers >= 1:
            yield Block(start, layers, first, last)


def _before(block: Block) -> Iterator[tuple[int, int]]:
    """(first taken, last taken) from which this block can be added."""
    for first in (0,) if block.first else (0, 1):
        for last in (0,) if block.last else (0, 1):
            yield first, last


def _take(least: Costs, block: Block, tp: int, cost: int) -> None:
    top = least.shape[-1] - 1
    capacity = min(block.capacity, top)
    for first, last in _before(block):
        source = least[block.start, :-1, first, last] + cost  # (pp, layers + 1)
        target = least[block.start + tp, 1:, first | block.first, last | block.last]
        reach = target[:, capacity:]
        np.minimum(reach, source[:, : top + 1 - capacity], out=reach)
        target[:, top] = np.minimum(target[:, top], source[:, top - capacity :].min(axis=1))  # more than enough


def _layers_before(layers: int, capacity: int, num_layers: int) -> range:
    """Layers held before a block was added; the last index also stands for everything beyond it."""
    capacity = min(capacity, num_layers)
    if layers < num_layers:
        return range(layers - capacity, layers - capacity + 1) if layers >= capacity else range(0)
    return range(num_layers - capacity, num_layers + 1)
