"""What a stage of one pipeline can be: the patterns that no other beats, with their times. Pure.

`Shelf` keeps patterns and tables that pipelines share: they depend on bytes and sensitivities, not on times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maveriq_planner.quantizing.patterns import Patterns, Reach, least_sensitivity, parts_of, patterns
from maveriq_planner.quantizing.pipeline import ROUNDING, Array, Indices, Pipeline, Stage

Key = tuple[object, ...]
Flags = NDArray[np.bool_]
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ways:
    """Of one stage; K patterns, by number of layers."""

    reach: Reach
    found: Patterns
    least: Array
    """Of all patterns; see patterns.least_sensitivity."""
    kept: Indices  # [K], among `found`
    prefill_ms: Array  # [K]
    decode_ms: Array  # [K]
    lost: Array  # [K, A]: least sensitivity on each segment; see `reach`
    sizes: Indices  # [S]: numbers of layers that there are
    first_of: Indices  # [S]: where each begins
    places: tuple[Indices, Indices]
    """Each size with each column that leaves room for it."""
    segments: Indices
    """Of each of `places`: (L + 1) * start + end."""

    @property
    def possible(self) -> Flags:
        return np.isfinite(self.lost)


@dataclass(frozen=True, slots=True)
class Shelf:
    """Patterns and tables by what they depend on; for one model."""

    sensitivity: Array
    max_patterns: int
    """Of one GPU: where there are more, the counts are searched instead."""
    max_entries: int
    """Of one table."""
    largest: dict[tuple[float, ...], float]
    """Capacity by bytes of a layer: patterns are listed once, for the roomiest GPU."""
    listed: dict[Key, Patterns | None] = field(default_factory=dict[Key, Patterns | None])
    kept: dict[Key, Indices] = field(default_factory=dict[Key, Indices])
    tables: dict[Key, Array] = field(default_factory=dict[Key, Array])

    def patterns_of(self, stage: Stage) -> Patterns | None:
        key: Key = stage.layer_bytes
        if key not in self.listed:
            most_layers = len(self.sensitivity)
            capacity_bytes = self.largest[stage.layer_bytes]
            self.listed[key] = patterns(np.array(stage.layer_bytes), capacity_bytes, most_layers, self.max_patterns)
        return self.listed[key]

    def kept_of(self, pipeline: Pipeline, stage: Stage, found: Patterns) -> Indices:
        sizes = (1, pipeline.num_layers - len(pipeline.stages) + 1)
        better = improvements(pipeline, stage)
        runs = np.isfinite(np.add(stage.prefill_ms, stage.decode_ms))
        key = (stage.layer_bytes, stage.capacity_bytes, sizes, better, runs.tobytes(), pipeline.uniform_stages)
        if key not in self.kept:
            self.kept[key] = _unbeaten(found, stage, sizes, better, runs, pipeline.uniform_stages)
        return self.kept[key]

    def table_of(self, stage: Stage, found: Patterns, kept: Indices, reach: Reach) -> Array | None:
        """None: it would be too large."""
        wide = reach is Reach.MIDDLE
        key = (stage.layer_bytes, reach, kept.tobytes() if wide else b"")
        if key not in self.tables:
            needed = parts_of(found, kept) if wide else np.arange(len(found))
            if len(found) * (len(self.sensitivity) if wide else 1) > self.max_entries:
                return None
            self.tables[key] = least_sensitivity(found, needed, self.sensitivity, reach)
        return self.tables[key]


def shelf_for(pipelines: Sequence[Pipeline], max_patterns: int, max_entries: int) -> Shelf:
    largest: dict[tuple[float, ...], float] = {}
    for pipeline in pipelines:
        for stage in pipeline.stages:
            largest[stage.layer_bytes] = max(largest.get(stage.layer_bytes, 0.0), stage.capacity_bytes)
    return Shelf(pipelines[0].sensitivity, max_patterns, max_entries, largest)


def ways_of(pipeline: Pipeline, shelf: Shelf) -> tuple[Ways, ...] | None:
    """Of each stage; None: too many to list. Equal stages share theirs."""
    made: dict[Key, Ways | None] = {}
    of_stages: list[Ways] = []
    last = len(pipeline.stages) - 1
    for place, stage in enumerate(pipeline.stages):
        reach = Reach.FIRST if place == 0 else Reach.LAST if place == last else Reach.MIDDLE
        key = (stage.numbers, reach)
        if key not in made:
            made[key] = _ways(pipeline, stage, reach, shelf)
        ways = made[key]
        if ways is None:
            return None
        of_stages.append(ways)
    return tuple(of_stages)


def _ways(pipeline: Pipeline, stage: Stage, reach: Reach, shelf: Shelf) -> Ways | None:
    found = shelf.patterns_of(stage)
    if found is None:
        return None
    kept = shelf.kept_of(pipeline, stage, found)
    least = shelf.table_of(stage, found, kept, reach)
    if least is None:
        return None
    prefill, decode = (np.where(np.isfinite(ms), ms, 0.0) for ms in (stage.prefill_ms, stage.decode_ms))
    sizes, first_of = np.unique(found.num_layers[kept], return_index=True)
    total = pipeline.num_layers
    size, column = np.nonzero(np.less_equal(np.add.outer(sizes, np.arange(int(least.shape[1]))), total))
    starts = total - sizes[size] if reach is Reach.LAST else column
    return Ways(
        reach, found, least, kept,
        np.maximum(prefill @ found.counts[:, kept] + stage.prefill_ends_ms, stage.prefill_hop_ms),
        np.maximum(decode @ found.counts[:, kept] + stage.decode_ends_ms, stage.decode_hop_ms),
        least[kept],
        sizes, first_of, (size, column), (total + 1) * starts + starts + sizes[size],
    )  # fmt: skip


def _unbeaten(
    found: Patterns, stage: Stage, sizes: tuple[int, int], better: Pairs, runs: Flags, uniform: bool
) -> Indices:
    """Patterns that fit and in which no layer could take a better precision."""
    capacity_bytes = stage.capacity_bytes * (1 + ROUNDING)
    fewest, most = sizes
    rows: Indices = np.flatnonzero(
        (found.num_layers >= fewest) & (found.num_layers <= most) & (found.bytes <= capacity_bytes)
    )
    for b in np.flatnonzero(~runs):
        rows = rows[found.counts[b, rows] == 0]
    if uniform:
        alone: Flags = (found.counts[:, rows] > 0).sum(axis=0) == 1
        return rows[alone]
    for one, other in better:
        full = found.bytes[rows] + (stage.layer_bytes[other] - stage.layer_bytes[one]) > capacity_bytes
        rows = rows[full | (found.counts[one, rows] == 0)]
    return rows


def improvements(pipeline: Pipeline, stage: Stage) -> Pairs:
    """Pairs of precisions of which the second is as good for every layer; of equal ones, the first goes."""
    sensitivity = pipeline.sensitivity
    pairs: list[tuple[int, int]] = []
    for worse in range(sensitivity.shape[1]):
        for better in range(sensitivity.shape[1]):
            a = np.array([stage.prefill_ms[worse], stage.decode_ms[worse], *sensitivity[:, worse]])
            b = np.array([stage.prefill_ms[better], stage.decode_ms[better], *sensitivity[:, better]])
            if worse != better and (b <= a).all() and ((b < a).any() or better < worse):
                pairs.append((worse, better))
    return tuple(pairs)
