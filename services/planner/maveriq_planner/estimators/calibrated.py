"""The law of a calibrated GPU type. Pure: its constants and a model's shape in, times and bytes out; nothing was run.

`Tables` keeps the terms that do not depend on the constants, so that GPU types share them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maveriq import law
from maveriq.contracts import Basis, Calibration, ModelFacts, Workload
from maveriq_planner.estimate import Array, Footprint, Kind, Times, dividing, fullest_ms, micro_batches
from maveriq_planner.memory import GIB, Counted, counted

_APART = ("idle", "hop.")
"""Of a step's ends: what a pipeline adds between its stages, no work of the last one."""


@dataclass(frozen=True, slots=True)
class Table:
    """Terms of a step at P x B shapes and of a prompt at P, one shape a row, R = P x B + P in all."""

    names: tuple[str, ...]
    through: Array  # [R, K]
    layer: Array  # [R, K]
    ends: Array  # [R, K], without what is between stages


@dataclass(frozen=True, slots=True)
class Tables:
    """Terms by shape; for one model and one workload."""

    known: dict[tuple[object, ...], Table] = field(default_factory=dict[tuple[object, ...], Table])
    sizes: dict[tuple[object, ...], tuple[Counted, dict[str, Array]]] = field(
        default_factory=dict[tuple[object, ...], tuple[Counted, dict[str, Array]]]
    )

    def of(self, facts: ModelFacts, rig: law.Rig, pps: Array, batches: Array, workload: Workload) -> Table:
        key = (rig, pps.tobytes(), batches.tobytes(), workload.input_tokens, workload.output_tokens)
        if key not in self.known:
            self.known[key] = _table(facts, rig, pps, batches, workload)
        return self.known[key]

    def sizes_of(
        self, facts: ModelFacts, rig: law.Rig, slots: Array, context_tokens: int
    ) -> tuple[Counted, dict[str, Array]]:
        """What can be counted, and the terms of the activations of one stage."""
        key = (rig, slots.tobytes(), context_tokens)
        if key not in self.sizes:
            count = counted(facts, rig.precision, rig.kv_precision, rig.tp, slots, context_tokens)
            terms = law.activation_terms(facts, rig, num_stages=1.0, tokens=context_tokens + slots)
            self.sizes[key] = (count, terms)
        return self.sizes[key]


@dataclass(frozen=True, slots=True)
class Constants:
    """A calibration's, as arrays that end with a constant of 0, for terms that it does not know."""

    places: Mapping[str, int]
    values: Array  # [K + 1]
    covariance: Array  # [K + 1, K + 1]
    residual: float
    """Relative standard deviation of what the fit left."""
    memory: Mapping[str, float]
    runtime_gib: Mapping[tuple[int, int], float]
    """On each GPU, by TP and PP degree."""

    def of(self, table: Table) -> NDArray[np.intp]:
        return np.array([self.places.get(name, len(self.places)) for name in table.names], dtype=np.intp)


def constants_of(calibration: Calibration) -> Constants:
    size = len(calibration.latency)
    covariance = np.zeros((size + 1, size + 1))
    for i, row in enumerate(calibration.covariance):
        covariance[i, : i + 1] = row
        covariance[: i + 1, i] = row
    left = calibration.latency_residuals
    memory = {constant.name: constant.value for constant in calibration.memory}
    return Constants(
        places={constant.name: i for i, constant in enumerate(calibration.latency)},
        values=np.array([*(constant.value for constant in calibration.latency), 0.0]),
        covariance=covariance,
        residual=max(1.4826 * left.median, left.p90 / 1.645),
        memory=memory,
        runtime_gib=dict(_runtimes(memory)),
    )


@dataclass(frozen=True, slots=True)
class CalibratedLaw:
    kind: Kind
    facts: ModelFacts
    calibration: Calibration
    constants: Constants
    tables: Tables
    basis: Basis = Basis.CALIBRATION

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        return dividing(self.calibration.scope.tp_degrees, self.facts)

    @property
    def max_pp(self) -> int:
        """One where no pipeline was seen."""
        return self.calibration.max_pp if max(self.calibration.scope.pp_degrees) > 1 else 1

    @property
    def max_batch(self) -> int:
        return self.calibration.scope.batches[-1]

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        rig = law.Rig(
            self.calibration.engine, self.kind.precision, self.kind.kv_precision, tp, self.calibration.scope.batches
        )
        table = self.tables.of(self.facts, rig, pps, batches, workload)
        num_layers, shape = self.facts.num_layers, (len(pps), len(batches))
        steps = len(pps) * len(batches)
        (through_ms, layer_ms, ends_ms), error = self._multiplied(table)
        stage_ms = fullest_ms(num_layers, pps[:, None], layer_ms[:steps].reshape(shape), ends_ms[:steps].reshape(shape))
        return Times(
            prefill_ms=through_ms[steps:],
            prefill_stage_ms=fullest_ms(num_layers, pps, layer_ms[steps:], ends_ms[steps:]),
            step_ms=np.maximum(through_ms[:steps].reshape(shape), micro_batches(pps, batches) * stage_ms),
            prefill_error=error[steps:],
            step_error=error[:steps].reshape(shape),
        )

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        """A layer counts with what an allocator rounds its buffers up by.

        Runtime and activations are raised by the largest share by which they were ever predicted too small; weights
        and cache are counted."""
        rig = law.Rig(self.calibration.engine, self.kind.precision, self.kind.kv_precision, tp, (1,))
        count, terms = self.tables.sizes_of(self.facts, rig, slots, context_tokens)
        runtime = np.array([self._runtime_gib(tp, int(pp)) for pp in pps])[:, None] * GIB
        middle = runtime + law.dot(self.constants.memory, terms) * GIB / tp
        layer_bytes = count.layer_bytes + np.ceil(self.constants.memory.get("buffers", 0.0) * GIB / 1024)
        residuals = self.calibration.memory_residuals
        unsure = middle * (residuals.p90 if residuals else 0.0)
        reserved = middle * (1 + self.calibration.memory_margin)
        return Footprint(
            layer_bytes, count.first_bytes, count.last_bytes, count.tied_saving_bytes, np.ceil(reserved),
            np.maximum(middle - unsure, 0.0), np.maximum(middle + unsure, reserved),
        )  # fmt: skip

    def _multiplied(self, table: Table) -> tuple[tuple[Array, Array, Array], Array]:
        """Through, layer and ends in ms, and the relative standard error of the first. [R] each

        That is x' C x and what the fit left.
        """
        chosen = self.constants.of(table)
        constants = self.constants.values[chosen]
        # One by one each is below the size from which BLAS starts threads, which take longer than the product.
        through_ms, layer_ms, ends_ms = (part @ constants for part in (table.through, table.layer, table.ends))
        active = chosen[constants > 0]
        x = table.through[:, constants > 0]
        variance = np.maximum(((x @ self.constants.covariance[active[:, None], active]) * x).sum(axis=1), 0.0)
        error = np.sqrt(variance / np.maximum(through_ms, 1e-12) ** 2 + self.constants.residual**2)
        return (through_ms, layer_ms, ends_ms), error

    def _runtime_gib(self, tp: int, pp: int) -> float:
        """On each GPU: as measured at these degrees, else the most that any GPU took at others."""
        known = self.constants.runtime_gib
        return known.get((tp, pp), max(known.values(), default=0.0))


def _table(facts: ModelFacts, rig: law.Rig, pps: Array, batches: Array, workload: Workload) -> Table:
    stages, num_layers = pps[:, None], facts.num_layers
    step = law.decode_terms(
        facts, rig, batch=batches / micro_batches(pps, batches),
        context_tokens=workload.input_tokens + workload.output_tokens / 2,
        num_layers=num_layers, num_stages=stages, fullest=np.ceil(num_layers / stages),
    )  # fmt: skip
    prompt = law.prefill_terms(
        facts, rig, batch=1.0, input_tokens=float(workload.input_tokens),
        num_layers=num_layers, num_stages=pps, fullest=np.ceil(num_layers / pps),
    )  # fmt: skip
    names = tuple(dict.fromkeys((*step.layer, *step.ends, *prompt.layer, *prompt.ends)))
    of_step = _filled(step, names, (len(pps), len(batches)))
    of_prompt = _filled(prompt, names, (len(pps),))
    layer, ends, work = (np.concatenate(pair) for pair in zip(of_step, of_prompt, strict=True))
    through = num_layers * layer + ends
    return Table(names, through, layer, work)


def _filled(passes: law.Passes, names: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Layer, ends, and ends without what is between stages: a row for each shape, a column for each name."""
    layer, ends, work = (np.zeros((*shape, len(names))) for _ in range(3))
    for i, name in enumerate(names):
        if name in passes.layer:
            layer[..., i] = passes.layer[name]
        if name in passes.ends:
            ends[..., i] = passes.ends[name]
            if not name.removeprefix("prompt_").startswith(_APART):
                work[..., i] = passes.ends[name]
    return layer.reshape(-1, len(names)), ends.reshape(-1, len(names)), work.reshape(-1, len(names))


def _runtimes(memory: Mapping[str, float]) -> Iterator[tuple[tuple[int, int], float]]:
    for name, value in memory.items():
        if name.startswith("runtime.tp"):
            tp, pp = map(int, name.removeprefix("runtime.tp").split(".pp"))
            yield (tp, pp), value / (tp * pp)
