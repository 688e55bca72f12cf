"""Where to cut the layers, if every stage has a most of time. Pure: what a stage's ways are charged in, cuts out.

best[j, end] = min over start of best[j - 1, start] + the least charge of stage j's patterns on layers start to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maveriq_planner.quantizing.charging import Charge
from maveriq_planner.quantizing.patterns import Reach, assigned
from maveriq_planner.quantizing.pipeline import Array, Indices, Pipeline, Split, latency_ms
from maveriq_planner.quantizing.ways import Ways


@dataclass(frozen=True, slots=True)
class Cut:
    charged: float
    """Sums and sensitivity, without what the longest stages cost."""
    objective: float
    """What the split costs, without the pipeline's scale."""
    lost: float
    prefill_longest_ms: float
    decode_longest_ms: float
    starts: tuple[int, ...]
    patterns: tuple[int, ...]
    """Of each stage, among its ways' kept ones."""

    def same_as(self, other: "Cut") -> bool:
        return (self.starts, self.patterns) == (other.starts, other.patterns)


@dataclass(frozen=True, slots=True)
class Cutter:
    pipeline: Pipeline
    ways: tuple[Ways, ...]

    def cut(self, charge: Charge, prefill_most_ms: float, decode_most_ms: float) -> Cut | None:
        """The least charged; None: the layers do not fit, or not so fast."""
        total = self.pipeline.num_layers
        charged: dict[int, Array] = {}
        segments: dict[int, Array] = {}
        reached = np.full(total + 1, np.inf)
        reached[0] = 0.0
        back: list[Indices] = []
        ends = np.arange(total + 1)
        for ways in self.ways:
            if id(ways) not in segments:
                charged[id(ways)] = _charged(ways, charge, prefill_most_ms, decode_most_ms)
                segments[id(ways)] = _segments(ways, total, charged[id(ways)], charge.lost)
            through = reached[:, None] + segments[id(ways)]
            back.append(through.argmin(axis=0))
            reached = through[back[-1], ends]
        if not np.isfinite(reached[total]):
            return None
        end = total
        starts: list[int] = []
        chosen: list[int] = []
        for ways, begins in zip(reversed(self.ways), reversed(back), strict=True):
            start = int(begins[end])
            chosen.append(_chosen(ways, start, end, charged[id(ways)], charge.lost))
            starts.append(start)
            end = start
        return self.told(charge, tuple(starts[::-1]), tuple(chosen[::-1]))

    def told(self, charge: Charge, starts: Sequence[int], patterns: Sequence[int]) -> Cut:
        parts = list(zip(self.ways, starts, patterns, strict=True))
        prefill = [float(ways.prefill_ms[k]) for ways, _, k in parts]
        decode = [float(ways.decode_ms[k]) for ways, _, k in parts]
        lost = sum(float(ways.lost[k, _column(ways, start)]) for ways, start, k in parts)
        latency = latency_ms(self.pipeline.weights, sum(prefill), max(prefill), sum(decode), max(decode))
        return Cut(
            charged=charge.prefill_sum * sum(prefill) + charge.decode_sum * sum(decode) + charge.lost * lost,
            objective=latency + self.pipeline.weights.theta * lost,
            lost=lost,
            prefill_longest_ms=max(prefill),
            decode_longest_ms=max(decode),
            starts=tuple(starts),
            patterns=tuple(patterns),
        )

    def split(self, cut: Cut) -> Split:
        held: list[int] = []
        for ways, start, k in zip(self.ways, cut.starts, cut.patterns, strict=True):
            held += assigned(ways.found, ways.least, int(ways.kept[k]), start, _column(ways, start),
                             self.pipeline.sensitivity, ways.reach)  # fmt: skip
        numbers = np.diff((*cut.starts, self.pipeline.num_layers))
        return Split(tuple(int(n) for n in numbers), tuple(held))


def _charged(ways: Ways, charge: Charge, prefill_most_ms: float, decode_most_ms: float) -> Array:
    """[K]: without sensitivity; infinity: too slow."""
    fast = (ways.prefill_ms <= prefill_most_ms) & (ways.decode_ms <= decode_most_ms)
    return np.where(fast, charge.prefill_sum * ways.prefill_ms + charge.decode_sum * ways.decode_ms, np.inf)


def _segments(ways: Ways, total: int, charged: Array, price: float) -> Array:
    """[L + 1, L + 1]: least charge of the layers from a start to an end."""
    least = np.full((total + 1) ** 2, np.inf)
    if not len(ways.sizes):
        return least.reshape(total + 1, -1)
    of_ways = ways.lost * price + charged[:, None] if price else np.where(ways.possible, charged[:, None], np.inf)
    of_sizes = np.minimum.reduceat(of_ways, ways.first_of, axis=0)  # [S, A]
    least[ways.segments] = of_sizes[ways.places]
    return least.reshape(total + 1, -1)


def _chosen(ways: Ways, start: int, end: int, charged: Array, price: float) -> int:
    size = int(np.searchsorted(ways.sizes, end - start))
    bounds = (*ways.first_of, len(ways.kept))
    rows = slice(bounds[size], bounds[size + 1])
    lost = ways.lost[rows, _column(ways, start)]
    of_ways = charged[rows] + (lost * price if price else np.where(np.isfinite(lost), 0.0, np.inf))
    return int(bounds[size] + np.argmin(of_ways))


def _column(ways: Ways, start: int) -> int:
    return start if ways.reach is Reach.MIDDLE else 0
