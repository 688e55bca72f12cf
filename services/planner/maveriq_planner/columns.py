"""Every configuration as a row of arrays. Pure: intent and space in, columns out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from maveriq.contracts import Intent, Objective, Workload
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.curves import curves_of, patience
from maveriq_planner.estimate import Estimator, Footprint, Kind, Times
from maveriq_planner.mixtures import mixtures
from maveriq_planner.queueing import Replicas, replicas_of
from maveriq_planner.space import Space
from maveriq_planner.workloads import context_tokens

_ONE_BY_ONE = 8  # batches up to here are looked at one by one; then twice in each doubling


@dataclass(frozen=True, slots=True)
class Columns:
    """C configurations. NaN: not known."""

    estimators: tuple[Estimator, ...]
    context_tokens: int
    which: Indices  # [C], of estimators
    tp: Indices  # [C]
    pp: Indices  # [C]
    slots: Indices  # [C]
    replicas: Replicas
    layer_bytes: Array  # [C], as those that follow
    first_bytes: Array
    last_bytes: Array
    tied_saving_bytes: Array
    runtime_bytes: Array
    runtime_low_bytes: Array
    runtime_high_bytes: Array
    memory_bytes: Array
    """Of one replica, over all its GPUs."""
    price_per_hour: Array
    """Of one replica."""
    accuracy: Array

    def __len__(self) -> int:
        return len(self.which)

    @property
    def num_gpus(self) -> Indices:
        """Of one replica."""
        return self.tp * self.pp

    @property
    def memory_low_bytes(self) -> Array:
        return self.memory_bytes - self.num_gpus * (self.runtime_bytes - self.runtime_low_bytes)

    @property
    def memory_high_bytes(self) -> Array:
        return self.memory_bytes + self.num_gpus * (self.runtime_high_bytes - self.runtime_bytes)

    def kind(self, i: int) -> Kind:
        return self.estimator(i).kind

    def estimator(self, i: int) -> Estimator:
        return self.estimators[int(self.which[i])]

    def take(self, chosen: Indices) -> "Columns":
        taken = {name: getattr(self, name)[chosen] for name in _TAKEN}
        return replace(self, replicas=self.replicas.take(chosen), **taken)


_TAKEN = tuple(f.name for f in fields(Columns) if f.name not in ("estimators", "context_tokens", "replicas"))


@dataclass(frozen=True, slots=True)
class _Block:
    """One estimator at one TP degree: P pipeline degrees, S numbers of slots."""

    which: int
    tp: int
    pps: Array  # [P]
    slots: Indices  # [S]
    times: Times
    footprint: Footprint


def columns_of(intent: Intent, space: Space) -> Columns | None:
    """What the intent lets the model run as. None: nothing."""
    tokens = context_tokens(intent.workload, space.facts)
    if tokens is None:
        return None
    known = (*space.estimators, *mixtures(intent, space, tokens))
    speaking = tuple(estimator for estimator in known if allowed(intent, space, estimator))
    if not speaking:
        return None
    grid = _grid(estimator.max_batch for estimator in speaking)
    blocks = list(_blocks(intent.workload, space, speaking, grid, tokens))
    return _joined(blocks, speaking, space, grid, tokens, intent.workload) if blocks else None


def allowed(intent: Intent, space: Space, estimator: Estimator) -> bool:
    """Whether the intent names its GPU types and precisions; the cheapest is sought among what has a price."""
    kind = estimator.kind
    return (
        (intent.gpu_types is None or set(kind.gpu_types) <= set(intent.gpu_types))
        and (intent.precisions is None or set(kind.layer_precisions) <= set(intent.precisions))
        and (intent.objective is not Objective.MIN_PRICE or price_of_gpu(space, kind) is not None)
    )


def price_of_gpu(space: Space, kind: Kind) -> float | None:
    """The mean of its stages'. None: one is not known."""
    if not kind.segments:
        return space.price_of(kind.gpu_type)
    prices = [space.price_of(segment.gpu_type) for segment in kind.segments]
    known = [price for price in prices if price is not None]
    return sum(known) / len(prices) if len(known) == len(prices) else None


def batches_up_to(most: int) -> list[int]:
    """Numbers of slots: powers of two up to the largest batch known, and that."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _grid(most: Iterable[int]) -> Array:
    largest = list(most)
    top = max(largest)
    points = {*range(1, min(top, _ONE_BY_ONE) + 1), *largest}
    points |= {step * 2**i for step in (2, 3) for i in range(top.bit_length()) if step * 2**i <= top}
    return np.array(sorted(points), dtype=float)


def replica_bytes(
    num_layers: int, tp: Indices, pp: Indices, layer: Array, runtime: Array, ends: Array, tied_saving: Array
) -> Array:
    """Over all GPUs. How the layers are split makes no difference to the sum."""
    whole: Array = tp * (num_layers * layer + pp * runtime + ends - (pp == 1) * tied_saving)
    return whole


def batches_known(grid: Array, estimator: Estimator) -> Array:
    """Points of the grid as the estimator is asked for them: beyond its largest batch nothing is read."""
    return np.minimum(grid, estimator.max_batch)


def _blocks(
    workload: Workload, space: Space, speaking: tuple[Estimator, ...], grid: Array, tokens: int
) -> Iterator[_Block]:
    for which, estimator in enumerate(speaking):
        pps = np.arange(1.0, min(estimator.max_pp, space.max_pp, space.facts.num_layers) + 1)
        if estimator.kind.segments:
            pps = np.array([float(len(estimator.kind.segments))])
        slots = np.array(batches_up_to(estimator.max_batch), dtype=np.intp)
        numbers, batches = slots.astype(float), batches_known(grid, estimator)
        for tp in estimator.tp_degrees:
            yield _Block(
                which, tp, pps, slots, estimator.times(tp, pps, batches, workload),
                estimator.footprint(tp, pps, numbers, tokens),
            )  # fmt: skip


def _joined(
    blocks: list[_Block], speaking: tuple[Estimator, ...], space: Space, grid: Array, tokens: int, workload: Workload
) -> Columns:
    """Rows are blocks' pipeline degrees, one after another; columns are rows' slots."""
    rows_of = np.array([len(block.pps) for block in blocks])
    slots_of = np.array([len(block.slots) for block in blocks])
    block_of_row = np.repeat(np.arange(len(blocks)), rows_of)
    row = np.repeat(np.arange(len(block_of_row)), slots_of[block_of_row])
    block = block_of_row[row]
    pp = np.concatenate([one.pps for one in blocks]).astype(np.intp)[row]
    tp = np.array([one.tp for one in blocks], dtype=np.intp)[block]
    which = np.array([one.which for one in blocks], dtype=np.intp)[block]
    first_slot = np.cumsum(slots_of) - slots_of
    first_column = np.cumsum(slots_of[block_of_row]) - slots_of[block_of_row]
    at_slot = first_slot[block] + np.arange(len(row)) - first_column[row]
    slots = np.concatenate([one.slots for one in blocks])[at_slot]
    curves = curves_of(
        np.concatenate([one.times.prefill_ms for one in blocks]),
        np.concatenate([one.times.prefill_stage_ms for one in blocks]),
        grid, np.concatenate([one.times.step_ms for one in blocks]), workload.output_tokens,
    )  # fmt: skip
    distinct = np.unique(slots)
    found = patience(curves, distinct)[row, np.searchsorted(distinct, slots)]
    prints = [one.footprint for one in blocks]
    layer = np.concatenate([one.layer_bytes for one in prints])[at_slot]
    first, last, tied = np.array([[f.first_bytes, f.last_bytes, f.tied_saving_bytes] for f in prints]).T[:, block]
    runtime, low, high = (
        np.concatenate([getattr(one, name).ravel() for one in prints])
        for name in ("runtime_bytes", "runtime_low_bytes", "runtime_high_bytes")
    )
    whole = replica_bytes(space.facts.num_layers, tp, pp, layer, runtime, first + last, tied)
    price = _known([price_of_gpu(space, estimator.kind) for estimator in speaking])
    accuracy = _known([estimator.kind.variant.accuracy for estimator in speaking])
    return Columns(
        speaking, tokens, which, tp, pp, slots, replicas_of(curves, row, slots.astype(float), found),
        layer, first, last, tied, runtime, low, high, whole, price[which] * tp * pp, accuracy[which],
    )  # fmt: skip


def _known(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
