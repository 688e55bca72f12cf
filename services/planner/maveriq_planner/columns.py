"""Every configuration as a row of arrays. Pure: intent and space in, columns out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import Intent, Objective, Workload
from maveriq_planner.estimate import Array, Estimator, Kind, replica_bytes
from maveriq_planner.queueing import Replicas, patience, replicas_of, stays_ms
from maveriq_planner.space import Space
from maveriq_planner.workloads import context_tokens

Chosen = NDArray[np.intp]

_ONE_BY_ONE = 8  # batches up to here are looked at one by one; then twice in each doubling


@dataclass(frozen=True, slots=True)
class Columns:
    """C configurations. NaN: not known."""

    estimators: tuple[Estimator, ...]
    context_tokens: int
    which: Chosen  # [C], of estimators
    tp: Chosen  # [C]
    pp: Chosen  # [C]
    slots: Chosen  # [C]
    replicas: Replicas
    prefill_error: Array  # [C], relative
    step_error: Array  # [C, G], relative
    layer_bytes: Array
    first_bytes: Array
    last_bytes: Array
    tied_saving_bytes: Array
    runtime_bytes: Array
    memory_bytes: Array
    """Of one replica, over all its GPUs."""
    memory_low_bytes: Array
    memory_high_bytes: Array
    price_per_hour: Array
    """Of one replica."""
    accuracy: Array

    def __len__(self) -> int:
        return len(self.which)

    @property
    def num_gpus(self) -> Chosen:
        """Of one replica."""
        product: Chosen = self.tp * self.pp
        return product

    def kind(self, i: int) -> Kind:
        return self.estimator(i).kind

    def estimator(self, i: int) -> Estimator:
        return self.estimators[int(self.which[i])]

    def take(self, chosen: Chosen) -> "Columns":
        return Columns(
            self.estimators, self.context_tokens, self.which[chosen], self.tp[chosen], self.pp[chosen],
            self.slots[chosen], self.replicas.take(chosen), self.prefill_error[chosen], self.step_error[chosen],
            self.layer_bytes[chosen], self.first_bytes[chosen], self.last_bytes[chosen],
            self.tied_saving_bytes[chosen], self.runtime_bytes[chosen], self.memory_bytes[chosen],
            self.memory_low_bytes[chosen], self.memory_high_bytes[chosen], self.price_per_hour[chosen],
            self.accuracy[chosen],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Block:
    """One estimator at one TP degree: P pipeline degrees, S numbers of slots, row by row."""

    which: int
    tp: int
    pps: Array
    slots: Chosen
    rows: tuple[Array, ...]
    """prefill, stage, its error: [P]; step, its error: [P, G]."""
    sizes: Array
    """[8, P x S]: layer, first, last, tied, runtime, whole, whole at least and at most."""


def columns_of(intent: Intent, space: Space) -> Columns | None:
    """What the intent lets the model run as. None: nothing."""
    tokens = context_tokens(intent.workload, space.facts)
    speaking = tuple(estimator for estimator in space.estimators if allowed(intent, space, estimator))
    if tokens is None or not speaking:
        return None
    grid = _grid(estimator.max_batch for estimator in speaking)
    blocks = list(_blocks(intent.workload, space, speaking, grid, tokens))
    return _joined(blocks, speaking, space, grid, tokens, intent.workload) if blocks else None


def allowed(intent: Intent, space: Space, estimator: Estimator) -> bool:
    """Whether the intent names its GPU type and precision; the cheapest is sought among what has a price."""
    kind = estimator.kind
    return (
        (intent.gpu_types is None or kind.gpu_type in intent.gpu_types)
        and (intent.precisions is None or kind.precision in intent.precisions)
        and (intent.objective is not Objective.MIN_PRICE or space.price_of(kind.gpu_type) is not None)
    )


def batches_up_to(most: int) -> list[int]:
    """Numbers of slots: powers of two up to the largest batch known, and that."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _grid(most: Iterable[int]) -> Array:
    largest = list(most)
    top = max(largest)
    points = {*range(1, min(top, _ONE_BY_ONE) + 1), *largest}
    points |= {step * 2**i for step in (2, 3) for i in range(top.bit_length()) if step * 2**i <= top}
    return np.array(sorted(points), dtype=float)


def _blocks(
    workload: Workload, space: Space, speaking: tuple[Estimator, ...], grid: Array, tokens: int
) -> Iterator[_Block]:
    num_layers = space.facts.num_layers
    for which, estimator in enumerate(speaking):
        pps = np.arange(1.0, min(estimator.max_pp, space.max_pp, num_layers) + 1)
        slots = np.array(batches_up_to(estimator.max_batch), dtype=np.intp)
        shape = (len(pps), len(slots))
        batches = np.minimum(grid, estimator.max_batch)
        for tp in estimator.tp_degrees:
            t = estimator.times(tp, pps, batches, workload)
            f = estimator.footprint(tp, pps, slots.astype(float), tokens)
            whole = replica_bytes(f, num_layers, tp, pps)
            gpus = tp * pps[:, None]
            sizes = np.empty((8, *shape))
            sizes[0], sizes[1], sizes[2] = f.layer_bytes, f.first_bytes, f.last_bytes
            sizes[3], sizes[4], sizes[5] = f.tied_saving_bytes, f.runtime_bytes, whole
            sizes[6] = whole - gpus * (f.runtime_bytes - f.runtime_low_bytes)
            sizes[7] = whole + gpus * (f.runtime_high_bytes - f.runtime_bytes)
            yield _Block(
                which, tp, pps, slots,
                (t.prefill_ms, t.prefill_stage_ms, t.prefill_error, t.step_ms, t.step_error),
                sizes.reshape(8, -1),
            )  # fmt: skip


def _joined(
    blocks: list[_Block], speaking: tuple[Estimator, ...], space: Space, grid: Array, tokens: int, workload: Workload
) -> Columns:
    prefill, stage, prefill_error, step, step_error = (
        np.concatenate([block.rows[i] for block in blocks]) for i in range(5)
    )
    layer, first, last, tied, runtime, whole, low, high = np.concatenate([block.sizes for block in blocks], axis=1)
    rows_of = [len(block.pps) for block in blocks]
    slots_of = [len(block.slots) for block in blocks]
    of_block = np.repeat(np.arange(len(blocks)), [r * s for r, s in zip(rows_of, slots_of, strict=True)])
    row = np.repeat(np.arange(sum(rows_of)), np.repeat(slots_of, rows_of))
    slots = np.concatenate([np.tile(block.slots, len(block.pps)) for block in blocks])
    pp = np.concatenate([np.repeat(block.pps, len(block.slots)) for block in blocks]).astype(np.intp)
    tp = np.array([block.tp for block in blocks], dtype=np.intp)[of_block]
    which = np.array([block.which for block in blocks], dtype=np.intp)[of_block]
    stay = stays_ms(prefill, stage, grid, step, workload.output_tokens)
    distinct = np.unique(slots)
    found = patience(grid, stay, distinct)[row, np.searchsorted(distinct, slots)]
    replicas = replicas_of(
        prefill[row], stage[row], grid, step[row], slots.astype(float), workload.output_tokens, patience=found
    )
    price = _known([space.price_of(estimator.kind.gpu_type) for estimator in speaking])
    accuracy = _known([estimator.kind.variant.accuracy for estimator in speaking])
    return Columns(
        speaking, tokens, which, tp, pp, slots, replicas, prefill_error[row], step_error[row], layer, first, last,
        tied, runtime, whole, low, high, price[which] * tp * pp, accuracy[which],
    )  # fmt: skip


def _known(values: list[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
