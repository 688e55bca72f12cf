"""Which layers of a model go to which GPU, and in which precision. Pure: pipelines in, the best split of all out.

Pipelines differ in the order of the GPUs and in their micro-batches. Each has a floor, at first a quick one and then
one that costs a pass over its cuts; they are searched from the lowest floor on, and one whose floor is above the best
split so far is not searched at all. So what comes out is proven within its gap over everything that was asked. Where a
GPU can be filled in too many ways to list them, the counts of layers are searched instead (HiGHS), and the gap is what
that leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

import numpy as np

from maveriq_planner.quantizing.counting import count_layers, realised
from maveriq_planner.quantizing.exchange import improve
from maveriq_planner.quantizing.floors import quick_floor
from maveriq_planner.quantizing.pipeline import ROUNDING, Cost, Pipeline, Split, Weights, cost
from maveriq_planner.quantizing.single import best_single
from maveriq_planner.quantizing.splitting import Halving, splitter
from maveriq_planner.quantizing.ways import Shelf, shelf_for, ways_of


@dataclass(frozen=True, slots=True)
class Effort:
    tolerance: float = 1e-4
    """Relative gap that is good enough."""
    max_patterns: int = 300_000
    max_entries: int = 20_000_000
    count_s: float = 2.0
    """HiGHS on one pipeline."""
    closes: bool = True
    """Whether HiGHS narrows what a price of sensitivity leaves open under a floor of accuracy."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of all pipelines."""

    pipeline: Pipeline
    split: Split
    cost: Cost
    bound: float
    """No split of any of the pipelines has a lower objective."""
    num_pipelines: int
    num_searched: int
    """The others were ruled out by their floor."""

    @property
    def gap(self) -> float:
        """Relative; 0: proven best."""
        return max(0.0, 1.0 - self.bound / self.cost.objective) if self.cost.objective > 0 else 0.0


class NothingFits(Exception):
    """No split of any pipeline fits, or none keeps to the accuracy that is asked."""


def quantize(
    pipelines: Sequence[Pipeline], *, most_sensitivity: float | None = None, effort: Effort | None = None
) -> Choice:
    """
    Args:
        pipelines: of one model: same layers, same precisions, same sensitivity.
        most_sensitivity: of all layers together; None: only `theta` speaks for accuracy.

    Raises:
        NothingFits: says which of the two.
    """
    if not pipelines:
        raise NothingFits("there is no pipeline to choose from")
    effort = effort or Effort()
    if most_sensitivity is not None:
        most_sensitivity *= 1 + ROUNDING
    search = _Search(shelf_for(pipelines, effort.max_patterns, effort.max_entries), effort, most_sensitivity)
    best = search.best(pipelines)
    if best is None:
        raise NothingFits(_why_not(search, pipelines))
    return best


def _why_not(search: "_Search", pipelines: Sequence[Pipeline]) -> str:
    careful = [replace(p, weights=Weights(0.0, 0.0, 0.0, 0.0, theta=1.0)) for p in pipelines]
    least = replace(search, most_sensitivity=None).best(careful)
    if least is None:
        num_layers, fewest = pipelines[0].num_layers, min(len(pipeline.stages) for pipeline in pipelines)
        if fewest > num_layers:
            return f"{num_layers} layers are fewer than the {fewest} GPUs, each of which is to hold one"
        return "the layers do not fit: no order of the GPUs holds them all, not even in the smallest precision"
    return (
        f"what fits loses at least {least.cost.sensitivity:g} by quantisation, and at most "
        f"{search.most_sensitivity:g} is allowed"
    )


@dataclass(frozen=True, slots=True)
class _Search:
    shelf: Shelf
    effort: Effort
    most_sensitivity: float | None

    def best(self, pipelines: Sequence[Pipeline]) -> Choice | None:
        """None: nothing fits, or nothing that loses so little."""
        best = _Best()
        searched: set[int] = set()
        waiting: list[tuple[float, int, Halving | None]] = [
            (quick_floor(p) * p.weights.scale, place, None) for place, p in enumerate(pipelines)
        ]
        heapify(waiting)
        while waiting:
            floor, place, halving = heappop(waiting)
            if floor >= best.beat(self.effort.tolerance):
                best.left[place] = floor
                break  # so has every other
            pipeline = pipelines[place]
            scale = pipeline.weights.scale
            if halving is None:
                halving, floor = self._opened(pipeline, floor)
            elif not halving.is_over:
                searched.add(place)
                halving.step()
            else:
                best.left[place] = floor
                continue
            if halving is None:
                searched.add(place)
                split, lower = self._at_once(pipeline, best.objective / scale)
                best.left[place] = max(lower * scale, floor)
                if split is not None:
                    best.offer(pipeline, split)
                continue
            if halving.best is not None and halving.best.objective * scale < best.objective:
                best.offer(pipeline, halving.splitter.split(halving.best))
            heappush(waiting, (max(floor, halving.bound * scale), place, halving))
        if self.most_sensitivity is not None and best.found is not None:
            self._close(pipelines, best)
        return best.told(len(pipelines), len(searched))

    def _close(self, pipelines: Sequence[Pipeline], best: "_Best") -> None:
        """What a price of sensitivity leaves open, changes of one or two layers and HiGHS narrow: there the floor is
        a constraint."""
        if best.found is not None:
            best.offer(best.found[0], improve(*best.found, self.most_sensitivity))
        if not self.effort.closes:
            return
        for place, bound in sorted(best.left.items(), key=lambda one: one[1]):
            if bound >= best.beat(self.effort.tolerance):
                break
            scale = pipelines[place].weights.scale
            split, lower = self._counted(pipelines[place], best.objective / scale)
            best.left[place] = max(bound, lower * scale)
            if split is not None:
                best.offer(pipelines[place], split)

    def _opened(self, pipeline: Pipeline, floor: float) -> tuple[Halving | None, float]:
        """The search of its boxes, where its patterns can be listed, and a better floor."""
        ways = ways_of(pipeline, self.shelf) if len(pipeline.stages) > 1 else None
        if ways is None:
            return None, floor
        cutter = splitter(pipeline, ways, self._most)
        return Halving(cutter, self.effort.tolerance), max(floor, cutter.floor() * pipeline.weights.scale)

    def _at_once(self, pipeline: Pipeline, beat: float) -> tuple[Split | None, float]:
        if len(pipeline.stages) == 1:
            single = best_single(pipeline, beat, self.effort.max_patterns, self._most)
            if single is not None:
                return single
        return self._counted(pipeline, beat)

    def _counted(self, pipeline: Pipeline, beat: float) -> tuple[Split | None, float]:
        effort = self.effort
        counted = count_layers(pipeline, effort.tolerance, effort.count_s, beat, self.most_sensitivity)
        if counted.counts is None:
            return None, counted.bound
        split = improve(pipeline, realised(pipeline, counted.counts), self.most_sensitivity)
        return (split if cost(pipeline, split).sensitivity <= self._most else None), counted.bound

    @property
    def _most(self) -> float:
        return np.inf if self.most_sensitivity is None else self.most_sensitivity


@dataclass(slots=True)
class _Best:
    """The best split so far."""

    found: tuple[Pipeline, Split] | None = None
    objective: float = np.inf
    left: dict[int, float] = field(default_factory=dict[int, float])
    """By pipeline, what no split of it is below, where its search ended."""

    def beat(self, tolerance: float) -> float:
        """What is not below this needs no look."""
        return np.inf if self.found is None else self.objective - tolerance * abs(self.objective)

    def offer(self, pipeline: Pipeline, split: Split) -> None:
        objective = cost(pipeline, split).objective
        if objective < self.objective:
            self.found, self.objective = (pipeline, split), objective

    def told(self, num_pipelines: int, num_searched: int) -> Choice | None:
        if self.found is None:
            return None
        bound = min(self.left.values(), default=np.inf)
        return Choice(*self.found, cost(*self.found), min(bound, self.objective), num_pipelines, num_searched)
