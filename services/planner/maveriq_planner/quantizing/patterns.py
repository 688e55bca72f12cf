"""How one GPU can be filled: layers counted by precision, and the least sensitivity of each way on each segment.

Pure: bytes of a layer in, patterns out. A pattern is a number of layers in each precision; which layers of a segment
get which precision is an assignment, and all assignments are solved at once, a layer at a time:
least[a, n] = min over b of least[a, n - one of b] + sensitivity[a + |n| - 1, b].
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Indices


@dataclass(frozen=True, slots=True)
class Patterns:
    counts: Indices  # [B, K], by number of layers
    num_layers: Indices  # [K]
    bytes: Array  # [K]
    before: Indices  # [B, K]: the pattern with one layer less of b; K where there is none
    first_of: Indices  # [most layers + 2]: where the patterns of each number of layers begin

    def __len__(self) -> int:
        return len(self.num_layers)


class Reach(StrEnum):
    """Which segments a stage can hold; what is tabulated for it."""

    FIRST = "first"
    """From the first layer: a column."""
    MIDDLE = "middle"
    """From any layer: a column for each."""
    LAST = "last"
    """Up to the last layer: a column."""


def patterns(layer_bytes: Array, capacity_bytes: float, most_layers: int, limit: int) -> Patterns | None:
    """All that fit; None where they are more than `limit`."""
    counts = np.zeros((0, 1), dtype=np.intp)  # [precisions so far, ways so far]
    before: list[Indices] = []
    left_bytes, left_layers = np.array([capacity_bytes * (1 + ROUNDING)]), np.array([most_layers])
    for each in layer_bytes:
        room = np.floor(left_bytes / each) if each > 0 else left_layers
        most = np.minimum(room, left_layers).astype(np.intp) + 1
        begun = np.cumsum(most) - most
        if int(most.sum()) > limit:
            return None
        held = np.repeat(np.arange(len(most)), most)
        number = np.arange(len(held)) - begun[held]
        # One layer less of an earlier precision leaves more room: the way with as many of this one is there too.
        before = [np.where(fewer[held] < 0, -1, begun[fewer[held]] + number) for fewer in before]
        before.append(np.where(number > 0, np.arange(len(held)) - 1, -1))
        counts = np.vstack([counts[:, held], number])
        left_bytes, left_layers = left_bytes[held] - number * each, left_layers[held] - number
    unsorted: Indices = np.asarray(most_layers - left_layers, dtype=np.intp)
    order = np.argsort(unsorted.astype(np.int16), kind="stable")  # int16: sorted by radix
    place = np.empty(len(order) + 1, dtype=np.intp)
    place[order] = np.arange(len(order))
    place[-1] = len(order)  # no such pattern
    num_layers = unsorted[order]
    return Patterns(
        counts=counts[:, order],
        num_layers=num_layers,
        bytes=capacity_bytes * (1 + ROUNDING) - left_bytes[order],
        before=np.array([place[fewer[order]] for fewer in before]),
        first_of=np.searchsorted(num_layers, np.arange(int(num_layers[-1]) + 2)),
    )


def parts_of(found: Patterns, kept: Indices) -> Indices:
    """`kept` and every pattern that one of them grows from."""
    needed = np.zeros(len(found) + 1, dtype=bool)
    needed[kept] = True
    for _, rows in _levels(found, downwards=True):
        grown = rows[needed[rows]]
        for before in found.before:
            needed[before[grown]] = True
    needed[0] = True
    return np.flatnonzero(needed[:-1])


def least_sensitivity(found: Patterns, needed: Indices, sensitivity: Array, reach: Reach) -> Array:
    """[K, A]: of each pattern on the segments that begin at layer a (or end with the last); infinity: not needed."""
    total, num_precisions = sensitivity.shape
    starts: Indices = np.arange(total if reach is Reach.MIDDLE else 1)
    least = np.full((len(found) + 1, len(starts)), np.inf)
    least[0] = 0.0
    wanted = np.zeros(len(found), dtype=bool)
    wanted[needed] = True
    for num_layers, rows in _levels(found):
        rows = rows[wanted[rows]]
        layers: Indices = starts + (total - num_layers if reach is Reach.LAST else num_layers - 1)
        added = np.where((layers < total)[:, None], sensitivity[np.minimum(layers, total - 1)], np.inf)
        best = least[found.before[0, rows]] + added[:, 0]
        for b in range(1, num_precisions):
            np.minimum(best, least[found.before[b, rows]] + added[:, b], out=best)
        least[rows] = best
    return least


def assigned(found: Patterns, least: Array, pattern: int, start: int, column: int, sensitivity: Array,
             reach: Reach) -> list[int]:  # fmt: skip
    """Precision of each layer of the segment from layer `start`, as the table was built."""
    layers = range(start, start + int(found.num_layers[pattern]))
    grown: list[int] = []
    for layer in layers if reach is Reach.LAST else reversed(layers):
        befores = found.before[:, pattern]
        chosen = int(np.argmin(least[befores, column] + sensitivity[layer]))
        grown.append(chosen)
        pattern = int(befores[chosen])
    return grown if reach is Reach.LAST else grown[::-1]


def _levels(found: Patterns, *, downwards: bool = False) -> Iterator[tuple[int, Indices]]:
    """Patterns of one layer, of two, and so on."""
    most = len(found.first_of) - 2
    for num_layers in range(most, 0, -1) if downwards else range(1, most + 1):
        yield num_layers, np.arange(found.first_of[num_layers], found.first_of[num_layers + 1])
