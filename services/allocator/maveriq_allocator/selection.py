"""Which GPUs a pipeline's stages take. Pure: free bytes and costs in, the cheapest blocks that hold the model out.

A dynamic programme over the GPUs, poorest first: each is passed over, or begins a stage, or is a further rank of a
stage begun before, which holds no more than its poorest rank can. Its value is the least cost for every (ranks still
missing, stages, first taken, last taken, layers held), so it is exact whatever the costs, but where that are too many
states. GPUs of one speed share a programme; `mixing` puts those of several speeds together. 8 stages on 16 GPUs take
some milliseconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import StageMemory

NEVER = np.int64(2**61)  # more than any replica costs, and room to add without overflow
MAX_STATES = 2_000_000  # of a programme: 16 MB, some ten milliseconds

Costs = NDArray[np.int64]
State = tuple[int, int, int, int, int]  # ranks still missing, stages, first taken, last taken, layers held


@dataclass(frozen=True, slots=True)
class Row:
    """GPUs that can be ranks of one stage together, poorest first."""

    free_bytes: tuple[int, ...]
    costs: tuple[int, ...]
    """Of taking each."""


@dataclass(frozen=True, slots=True)
class Block:
    """One stage."""

    ranks: tuple[int, ...]
    """Indices of its GPUs, all rows in one; the poorest first."""
    capacity: int
    """Layers that it can hold, at most the limit asked for."""
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class _Opening:
    """A stage that can begin at a GPU as its poorest rank."""

    capacity: int
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
        self._openings = [tuple(_openings(memory, pp, most_layers, free)) for row in rows for free in row.free_bytes]
        missing = most_missing(pp, tp, neighbours=_are_sorted(rows))
        num_states = (len(self._costs) + 1) * (missing + 1) * (pp + 1) * 4 * (num_layers + 1)
        self.is_exact = num_states <= MAX_STATES
        """Else stages are completed one after the other: it fits if it can, but a cheaper choice may be missed."""
        if not self.is_exact:
            missing = most_missing(pp, tp, neighbours=True)
        self._most_missing = min(missing, len(self._costs))
        self._row_ends = frozenset(int(end) for end in np.cumsum([len(row.free_bytes) for row in rows]))
        self._by_gpu = self._run()

    @property
    def least(self) -> Costs:
        """[stages, first taken, last taken, layers held]: the last index also stands for everything beyond it."""
        least: Costs = self._by_gpu[-1][0]
        return least

    def _run(self) -> Costs:
        num_gpus = len(self._costs)
        shape = (num_gpus + 1, self._most_missing + 1, self._pp + 1, 2, 2, self._num_layers + 1)
        least = np.full(shape, NEVER, dtype=np.int64)
        least[0, 0, 0, 0, 0, 0] = 0
        for gpu, cost in enumerate(self._costs):
            before, after = least[gpu], least[gpu + 1]
            after[:] = before
            if self._tp > 1:
                np.minimum(after[:-1], before[1:] + cost, out=after[:-1])
            for opening in self._openings[gpu]:
                _open(before, after, opening, self._tp - 1, cost)
            if gpu + 1 in self._row_ends:
                after[1:] = NEVER
        return least

    def blocks(self, num_stages: int, first: int, last: int, layers: int) -> list[Block]:
        """The blocks behind one value of `least`."""
        taken: list[Block] = []
        spare: list[int] = []  # ranks of stages that begin at poorer GPUs, the poorest last
        state: State = (0, num_stages, first, last, layers)
        for gpu in reversed(range(len(self._costs))):
            value = self._by_gpu[(gpu + 1, *state)]
            if self._by_gpu[(gpu, *state)] == value:
                continue
            begun = self._begun(gpu, state, value)
            if begun is None:
                spare.append(gpu)
                state = (state[0] + 1, *state[1:])
                continue
            opening, state = begun
            ranks = (gpu, *(spare.pop() for _ in range(self._tp - 1)))
            taken.append(Block(ranks, opening.capacity, opening.first, opening.last))
        return taken

    def _begun(self, gpu: int, state: State, value: int) -> tuple[_Opening, State] | None:
        """The stage that begins at this GPU, and the state before; None: it is a further rank."""
        return next(
            (
                (opening, before)
                for opening in self._openings[gpu]
                for before in self._states_before(state, opening)
                if self._value(gpu, before) == value
            ),
            None,
        )

    def _value(self, gpu: int, before: State) -> int:
        """Of taking this GPU from that state."""
        return int(self._by_gpu[(gpu, *before)]) + self._costs[gpu]

    def _states_before(self, state: State, opening: _Opening) -> Iterator[State]:
        missing, stages, first, last, layers = state
        if missing < self._tp - 1 or stages < 1:
            return
        for ends in _ends_before(opening):
            if (ends[0] | opening.first, ends[1] | opening.last) == (first, last):
                for held in _layers_before(layers, opening.capacity, self._num_layers):
                    yield missing - self._tp + 1, stages - 1, *ends, held


def most_missing(pp: int, tp: int, *, neighbours: bool) -> int:
    """Ranks that stages which have begun may lack together.

    Args:
        neighbours: cheaper GPUs are poorer ones, so one stage is completed before the next begins.
    """
    return tp - 1 if neighbours else pp * (tp - 1)


def _are_sorted(rows: Sequence[Row]) -> bool:
    return all(a <= b for row in rows for a, b in pairwise(row.costs))


def _openings(memory: StageMemory, pp: int, most_layers: int, free_bytes: int) -> Iterator[_Opening]:
    for first, last in ((True, True),) if pp == 1 else ((False, False), (True, False), (False, True)):
        layers = min(most_layers, (free_bytes - memory.of_stage(0, first=first, last=last)) // memory.layer_bytes)
        if layers >= 1:
            yield _Opening(layers, first, last)


def _ends_before(opening: _Opening) -> Iterator[tuple[int, int]]:
    """(first taken, last taken) from which this stage can be begun."""
    for first in (0,) if opening.first else (0, 1):
        for last in (0,) if opening.last else (0, 1):
            yield first, last


def _open(before: Costs, after: Costs, opening: _Opening, num_others: int, cost: int) -> None:
    """Args:
    before, after: [ranks missing, stages, first taken, last taken, layers held] without and with this GPU.
    num_others: ranks of the stage beside its poorest.
    """
    top = before.shape[-1] - 1
    capacity = min(opening.capacity, top)
    for first, last in _ends_before(opening):
        source = before[: before.shape[0] - num_others, :-1, first, last] + cost  # (ranks missing, pp, layers + 1)
        target = after[num_others:, 1:, first | opening.first, last | opening.last]
        reach = target[..., capacity:]
        np.minimum(reach, source[..., : top + 1 - capacity], out=reach)
        beyond = source[..., top - capacity :].min(axis=-1)  # more than enough
        target[..., top] = np.minimum(target[..., top], beyond)


def _layers_before(layers: int, capacity: int, num_layers: int) -> range:
    """Layers held before a stage was added; the last index also stands for everything beyond it."""
    capacity = min(capacity, num_layers)
    if layers < num_layers:
        return range(layers - capacity, layers - capacity + 1) if layers >= capacity else range(0)
    return range(num_layers - capacity, num_layers + 1)
