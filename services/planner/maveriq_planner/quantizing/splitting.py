"""The best split of one pipeline, with its proof. Pure: a pipeline in, a split and a lower bound out.

Given a most that any stage may take for prompts and a most for steps, stages are independent but for where they meet: a
programme over the cuts finds the best split (cuts.py). What is left is a search over the two mosts. A box of them is
bounded below by its lower corner's price and the best split at its upper corner; boxes are halved, the lowest bound
first, until it is within `tolerance` of the best split that was seen.

A floor of accuracy is a most of total sensitivity, and priced at each corner: at the price at which a split that loses
too much costs as much as one that does not, the best split less the price of all that may be lost is a lower bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from maveriq_planner.quantizing.charging import Charge, charges
from maveriq_planner.quantizing.cuts import Cut, Cutter
from maveriq_planner.quantizing.pipeline import Pipeline, Split
from maveriq_planner.quantizing.ways import Ways

_NARROWEST = 0.25  # share of the tolerance: a box whose bound can rise by less is halved no more
_MOST_PRICES = 6  # of sensitivity, at one corner
_MOST_BOXES = 4000  # of one pipeline; its bound is told as it is then


@dataclass(frozen=True, slots=True)
class Corner:
    """What is known of all splits under a most of each kind."""

    bounds: tuple[float, ...]
    """By charge: none is charged less, what the longest stages cost left out."""
    cut: Cut
    """The best that keeps to the floor."""


@dataclass(frozen=True, slots=True)
class Box:
    prefill_low_ms: float
    decode_low_ms: float
    prefill_high_ms: float
    decode_high_ms: float
    corner: Corner


@dataclass(frozen=True, slots=True)
class Splitter:
    cutter: Cutter
    charges: tuple[Charge, ...]
    """Each never more than the weights; a box is bounded by the one that charges most."""
    most_sensitivity: float = np.inf

    def floor(self) -> float:
        """No split costs less: the longest stage takes no less than the mean. Infinity: nothing fits."""
        even = tuple(charge.evened(len(self.cutter.ways)) for charge in self.charges)
        corner = self.corner(even, np.inf, np.inf)
        return np.inf if corner is None else max(corner.bounds)

    def split(self, cut: Cut) -> Split:
        return self.cutter.split(cut)

    def bound(self, box: Box) -> float:
        return max(
            bound + charge.prefill_longest * box.prefill_low_ms + charge.decode_longest * box.decode_low_ms
            for bound, charge in zip(box.corner.bounds, self.charges, strict=True)
        )

    def halves(self, box: Box, narrowest: float) -> Iterator[Box]:
        """The half below has a corner of its own, the half above the box's. None: the box is as good as a point."""
        cut = box.corner.cut
        prefill_slack = self._prefill_longest * (cut.prefill_longest_ms - box.prefill_low_ms)
        decode_slack = self._decode_longest * (cut.decode_longest_ms - box.decode_low_ms)
        if max(prefill_slack, decode_slack) <= narrowest * abs(cut.objective):
            return
        if decode_slack >= prefill_slack:
            middle = (box.decode_low_ms + cut.decode_longest_ms) / 2
            corner = self.corner(self.charges, box.prefill_high_ms, middle)
            if corner is not None:
                yield Box(box.prefill_low_ms, box.decode_low_ms, box.prefill_high_ms, middle, corner)
            yield Box(box.prefill_low_ms, middle, box.prefill_high_ms, box.decode_high_ms, box.corner)
        else:
            middle = (box.prefill_low_ms + cut.prefill_longest_ms) / 2
            corner = self.corner(self.charges, middle, box.decode_high_ms)
            if corner is not None:
                yield Box(box.prefill_low_ms, box.decode_low_ms, middle, box.decode_high_ms, corner)
            yield Box(middle, box.decode_low_ms, box.prefill_high_ms, box.decode_high_ms, box.corner)

    @property
    def _prefill_longest(self) -> float:
        return max(charge.prefill_longest for charge in self.charges)

    @property
    def _decode_longest(self) -> float:
        return max(charge.decode_longest for charge in self.charges)

    def corner(self, charges: tuple[Charge, ...], prefill_ms: float, decode_ms: float) -> Corner | None:
        """None: no split is so fast and loses so little."""
        found: list[tuple[float, Cut]] = []
        for charge in charges:
            one = self._under_floor(charge, prefill_ms, decode_ms)
            if one is None:
                return None
            found.append(one)
        return Corner(tuple(bound for bound, _ in found), min((cut for _, cut in found), key=lambda cut: cut.objective))

    def _under_floor(self, charge: Charge, prefill_ms: float, decode_ms: float) -> tuple[float, Cut] | None:
        """What none is charged less than, and the best that keeps to the floor."""
        most = self.most_sensitivity
        lossy = self.cutter.cut(charge, prefill_ms, decode_ms)
        if lossy is None or lossy.lost <= most:
            return None if lossy is None else (lossy.charged, lossy)
        kept = self.cutter.cut(Charge(0.0, 0.0, 0.0, 0.0, 1.0), prefill_ms, decode_ms)
        if kept is None or kept.lost > most:
            return None
        kept, bound = self._recharged(kept, charge), lossy.charged
        best = kept
        for _ in range(_MOST_PRICES):
            if kept.charged <= lossy.charged:
                break
            price = (kept.charged - lossy.charged) / (lossy.lost - kept.lost)
            found = self.cutter.cut(charge.dearer(price), prefill_ms, decode_ms)
            assert found is not None, "what was cut before can be cut at any price"
            bound = max(bound, found.charged - price * most)
            found = self._recharged(found, charge)
            if found.lost <= most and found.objective < best.objective:
                best = found
            if found.same_as(kept) or found.same_as(lossy):
                break
            kept, lossy = (found, lossy) if found.lost <= most else (kept, found)
        return bound, best

    def _recharged(self, cut: Cut, charge: Charge) -> Cut:
        return self.cutter.told(charge, cut.starts, cut.patterns)


@dataclass(slots=True)
class Halving:
    """The search over one pipeline, a box at a time: the one of the lowest bound is halved."""

    splitter: Splitter
    tolerance: float
    best: Cut | None = None
    """Seen so far. None: nothing fits."""
    closed: float = np.inf
    """Least bound of boxes that are halved no more."""
    boxes: list[tuple[float, int, Box]] = field(default_factory=list[tuple[float, int, Box]])
    num_boxes: int = 0

    def __post_init__(self) -> None:
        whole = self.splitter.corner(self.splitter.charges, np.inf, np.inf)
        if whole is not None:
            self._keep(max(whole.bounds), Box(0.0, 0.0, np.inf, np.inf, whole))

    @property
    def bound(self) -> float:
        """No split of the pipeline costs less; infinity: it has none."""
        return min(self.closed, self.boxes[0][0] if self.boxes else np.inf)

    @property
    def is_over(self) -> bool:
        return not self.boxes or self.closed < self.boxes[0][0] or self.num_boxes > _MOST_BOXES

    def step(self) -> None:
        bound, _, box = heappop(self.boxes)
        halves = list(self.splitter.halves(box, _NARROWEST * self.tolerance))
        if not halves:
            self.closed = min(self.closed, bound)
        for half in halves:
            self._keep(max(bound, self.splitter.bound(half)), half)

    def _keep(self, bound: float, box: Box) -> None:
        self.num_boxes += 1
        heappush(self.boxes, (bound, self.num_boxes, box))
        if self.best is None or box.corner.cut.objective < self.best.objective:
            self.best = box.corner.cut


def splitter(pipeline: Pipeline, ways: tuple[Ways, ...], most_sensitivity: float = np.inf) -> Splitter:
    return Splitter(Cutter(pipeline, ways), tuple(charges(pipeline.weights, len(ways))), most_sensitivity)
