"""Several replicas on one node at once. Pure: its fragments in, the stages of as many replicas as fit out.

One replica after the other can take what another needed. Here all of a node are decided together, as an integer
programme (HiGHS): for every way to choose a replica's GPUs, how many replicas use it, and how many layers, first and
last stages of these fall on each of its GPUs. That is exact: such sums can always be dealt out to single replicas.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from maveriq.contracts import Stage
from maveriq_allocator.budget import Budget
from maveriq_allocator.packing import Fragment
from maveriq_allocator.screening import Shape

MAX_WAYS = 256  # to choose a replica's GPUs on a node: of eight GPUs, all shapes
MAX_SOLVED = 3  # times; the solver may take a millionth of a layer more than a GPU has, which is then asked of it again
LIMIT_REACHED = 1  # status of scipy's `milp`
TOLERANCE = 4e-6  # layers, several times the solver's

Way = tuple[tuple[int, ...], ...]
"""The GPUs of each stage, whatever their order in the pipeline."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What falls on one stage's GPUs of all replicas that use a way."""

    layers: int
    firsts: int
    lasts: int


def pack_many(shape: Shape, fragments: Sequence[Fragment], most: int, budget: Budget) -> list[tuple[Stage, ...]]:
    """As many replicas as fit beside one another, and no more than `most`; none where there are too many ways."""
    ways = _ways(shape, fragments)
    if not ways or most < 1:
        return []
    counts = _Programme(shape, fragments, ways, most).solve(budget)
    replicas: list[tuple[Stage, ...]] = []
    for way, num_replicas, shares in counts:
        for stages in _dealt(num_replicas, shares, shape.most_layers):
            replicas.append(tuple(_stage(shape, fragments, way[at], n, *ends) for at, n, ends in stages))
    return replicas


def _ways(shape: Shape, fragments: Sequence[Fragment]) -> list[Way]:
    """All ways to choose the GPUs of a replica's stages; none where they are too many."""
    usable = [at for at, fragment in enumerate(fragments) if fragment.free_bytes >= shape.least_bytes]
    if len(usable) > 2 * MAX_WAYS:
        return []
    ways: list[Way] = []
    for way in _cut(usable, shape.pp, shape.tp, fragments):
        ways.append(way)
        if len(ways) > MAX_WAYS:
            return []
    return ways


def _cut(gpus: Sequence[int], pp: int, tp: int, fragments: Sequence[Fragment]) -> Iterator[Way]:
    """Stages in the order of their first GPU, so that none comes twice."""
    if pp == 0:
        yield ()
        return
    for ranks in combinations(gpus, tp):
        if len({fragments[gpu].gpu_type for gpu in ranks}) == 1:
            later = [gpu for gpu in gpus if gpu > ranks[0] and gpu not in ranks]
            if len(later) >= (pp - 1) * tp:
                yield from ((ranks, *rest) for rest in _cut(later, pp - 1, tp, fragments))


class _Programme:
    """Variables of each way: replicas, then for each of its stages the layers, firsts and lasts."""

    def __init__(self, shape: Shape, fragments: Sequence[Fragment], ways: Sequence[Way], most: int) -> None:
        self._shape, self._fragments, self._ways, self._most = shape, fragments, ways, most
        self._width = 1 + 3 * shape.pp
        self._rows: list[tuple[dict[int, float], float, float]] = []
        """Coefficients by variable, and the least and most of their sum."""
        self._rooms: dict[int, int] = {}
        """The row of each GPU's bytes."""
        self._constrain()

    def solve(self, budget: Budget) -> list[tuple[Way, int, list[_Share]]]:
        """The ways that are used."""
        for _ in range(MAX_SOLVED):
            found = self._solved(budget)
            held = self._held(found)
            over = [gpu for gpu, num_bytes in held.items() if num_bytes > self._fragments[gpu].free_bytes]
            if not over:
                return found
            for gpu in over:
                row, least, _ = self._rows[self._rooms[gpu]]
                free = self._fragments[gpu].free_bytes / self._shape.memory.layer_bytes
                self._rows[self._rooms[gpu]] = row, least, free - TOLERANCE
        return []

    def _held(self, found: Sequence[tuple[Way, int, list[_Share]]]) -> Counter[int]:
        """Bytes of each GPU, to the last."""
        memory, held = self._shape.memory, Counter[int]()
        runtime = memory.runtime_bytes - (memory.tied_saving_bytes if self._shape.pp == 1 else 0)
        for way, num_replicas, shares in found:
            for ranks, share in zip(way, shares, strict=True):
                ends = share.firsts * memory.first_bytes + share.lasts * memory.last_bytes
                for gpu in ranks:
                    held[gpu] += num_replicas * runtime + share.layers * memory.layer_bytes + ends
        return held

    def _solved(self, budget: Budget) -> list[tuple[Way, int, list[_Share]]]:
        num_variables = self._width * len(self._ways)
        used = np.zeros(num_variables)
        used[:: self._width] = -1.0
        found = milp(
            used, constraints=self._constraints(num_variables), integrality=np.ones(num_variables, dtype=np.int64),
            bounds=Bounds(0, np.inf), options={"time_limit": budget.joint_s()},
        )  # fmt: skip
        budget.was_short |= found.status == LIMIT_REACHED
        if found.x is None:
            return []
        values = np.rint(found.x).astype(np.int64).reshape(len(self._ways), self._width)
        return [(way, int(row[0]), self._shares(row)) for way, row in zip(self._ways, values, strict=True) if row[0]]

    def _shares(self, row: NDArray[np.int64]) -> list[_Share]:
        return [_Share(*(int(value) for value in row[1 + 3 * at : 4 + 3 * at])) for at in range(self._shape.pp)]

    def _constrain(self) -> None:
        shape, memory = self._shape, self._shape.memory
        on_gpu: dict[int, dict[int, float]] = {}
        for number, way in enumerate(self._ways):
            replicas = self._width * number
            stages = [(replicas + 1 + 3 * at, replicas + 2 + 3 * at, replicas + 3 + 3 * at) for at in range(shape.pp)]
            for role, each in ((0, shape.num_layers), (1, 1), (2, 1)):
                self._rows.append(({replicas: -each} | {stage[role]: 1.0 for stage in stages}, 0, 0))
            for ranks, (layers, first, last) in zip(way, stages, strict=True):
                self._rows.append(({layers: 1.0, replicas: -1.0}, 0, np.inf))
                self._rows.append(({layers: 1.0, replicas: -shape.most_layers}, -np.inf, 0))
                if shape.pp > 1:
                    self._rows.append(({first: 1.0, last: 1.0, replicas: -1.0}, -np.inf, 0))
                runtime = memory.runtime_bytes - (memory.tied_saving_bytes if shape.pp == 1 else 0)
                held = {
                    replicas: runtime, layers: memory.layer_bytes, first: memory.first_bytes, last: memory.last_bytes
                }  # fmt: skip
                for gpu in ranks:
                    for variable, num_bytes in held.items():
                        there = on_gpu.setdefault(gpu, {})
                        there[variable] = there.get(variable, 0.0) + num_bytes
        for gpu, row in on_gpu.items():  # in layers: numbers near 1 are what a solver is exact with
            scaled = {variable: num_bytes / memory.layer_bytes for variable, num_bytes in row.items()}
            self._rooms[gpu] = len(self._rows)
            self._rows.append((scaled, 0, self._fragments[gpu].free_bytes / memory.layer_bytes))
        self._rows.append((dict.fromkeys(range(0, self._width * len(self._ways), self._width), 1.0), 0, self._most))

    def _constraints(self, num_variables: int) -> LinearConstraint:
        sizes = [len(row) for row, _, _ in self._rows]
        columns = list(chain.from_iterable(row for row, _, _ in self._rows))
        values = list(chain.from_iterable(row.values() for row, _, _ in self._rows))
        shape = (len(self._rows), num_variables)
        matrix = coo_array((values, (np.repeat(np.arange(len(sizes)), sizes), columns)), shape=shape)
        return LinearConstraint(matrix.tocsr(), [low for _, low, _ in self._rows], [high for _, _, high in self._rows])


Dealt = tuple[int, int, tuple[bool, bool]]
"""Index of the stage's GPUs in the way, layers, and whether it is the first and the last."""


def _dealt(num_replicas: int, shares: Sequence[_Share], most_layers: int) -> Iterator[list[Dealt]]:
    """Each replica's stages, in pipeline order."""
    layers = [share.layers for share in shares]
    firsts, lasts = [share.firsts for share in shares], [share.lasts for share in shares]
    num_layers = sum(layers) // num_replicas
    for others in reversed(range(num_replicas)):
        mine = [max(1, n - others * most_layers) for n in layers]  # what those after it have no room for
        for at in sorted(range(len(layers)), key=lambda at: -layers[at]):
            more = min(num_layers - sum(mine), layers[at] - others - mine[at], most_layers - mine[at])
            mine[at] += max(0, more)
        first, last = _ends(firsts, lasts)
        layers = [n - m for n, m in zip(layers, mine, strict=True)]
        firsts[first] -= 1
        lasts[last] -= 1
        middle = [at for at in range(len(layers)) if at not in (first, last)]
        order = [first, *middle, *([last] if last != first else [])]
        yield [(at, mine[at], (at == first, at == last)) for at in order]


def _ends(firsts: Sequence[int], lasts: Sequence[int]) -> tuple[int, int]:
    """First and last stage of one replica: of those that most replicas still need."""
    at_all = range(len(firsts))
    pairs = [(a, b) for a in at_all for b in at_all if firsts[a] and lasts[b] and (a != b or len(firsts) == 1)]
    return max(pairs, key=lambda pair: sum(firsts[at] + lasts[at] for at in pair))


def _stage(
    shape: Shape, fragments: Sequence[Fragment], ranks: Sequence[int], num_layers: int, first: bool, last: bool
) -> Stage:
    gpus = [fragments[gpu] for gpu in ranks]
    return Stage(
        gpus=tuple(sorted(gpu.gpu for gpu in gpus)),
        num_layers=num_layers,
        reserved_bytes=shape.memory.of_stage(num_layers, first=first, last=last),
        node=gpus[0].node,
        gpu_type=gpus[0].gpu_type,
    )
