"""The law of a calibrated GPU type. Pure: its constants and a model's shape in, times and bytes out; nothing was run.

`Tables` keeps the terms that do not depend on the constants, so that GPU types share them.
"""

from dataclasses import dataclass, field

import numpy as np

from maveriq import law
from maveriq.contracts import Basis, Calibration, ModelFacts, Workload
from maveriq_planner.estimate import Array, Footprint, Kind, Times, dividing, fullest_ms, micro_batches
from maveriq_planner.memory import GIB, counted

_APART = ("idle", "hop.")
"""Of a step's ends: what a pipeline adds between its stages, no work of the last one."""


@dataclass(frozen=True, slots=True)
class Table:
    """Terms of one pass at many shapes: names, and values with the shapes' axes first."""

    names: tuple[str, ...]
    through: Array  # [..., K]
    layer: Array  # [..., K]
    ends: Array  # [..., K], without what is between stages


@dataclass(frozen=True, slots=True)
class Tables:
    """Terms by shape; for one model and one workload."""

    known: dict[tuple[object, ...], tuple[Table, Table]] = field(
        default_factory=dict[tuple[object, ...], tuple[Table, Table]]
    )

    def of(
        self, facts: ModelFacts, rig: law.Rig, pps: Array, batches: Array, workload: Workload
    ) -> tuple[Table, Table]:
        """Of decoding [P, B] and of reading one prompt [P]."""
        key = (rig, pps.tobytes(), batches.tobytes(), workload.input_tokens, workload.output_tokens)
        if key not in self.known:
            self.known[key] = (_decode(facts, rig, pps, batches, workload), _prefill(facts, rig, pps, workload))
        return self.known[key]


@dataclass(frozen=True, slots=True)
class CalibratedLaw:
    kind: Kind
    facts: ModelFacts
    calibration: Calibration
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
        decode, prefill = self.tables.of(self.facts, rig, pps, batches, workload)
        num_layers = self.facts.num_layers
        through_ms, layer_ms, ends_ms, step_error = self._multiplied(decode)
        groups = micro_batches(pps, batches)
        stage_ms = fullest_ms(num_layers, pps[:, None], layer_ms, ends_ms)
        prompt_ms, prompt_layer_ms, prompt_ends_ms, prompt_error = self._multiplied(prefill)
        return Times(
            prefill_ms=prompt_ms,
            prefill_stage_ms=fullest_ms(num_layers, pps, prompt_layer_ms, prompt_ends_ms),
            step_ms=np.maximum(through_ms, groups * stage_ms),
            prefill_error=prompt_error,
            step_error=step_error,
        )

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        """The runtime's bytes are raised by the largest share by which memory was ever predicted too small."""
        constants = {constant.name: constant.value for constant in self.calibration.memory}
        count = counted(self.facts, self.kind.precision, self.kind.kv_precision, tp, slots, context_tokens)
        runtime = np.array([_runtime_gib(constants, tp, int(pp)) for pp in pps])[:, None] * GIB
        rig = law.Rig(self.calibration.engine, self.kind.precision, self.kind.kv_precision, tp, (1,))
        terms = law.activation_terms(self.facts, rig, num_stages=1.0, tokens=context_tokens + slots)
        middle = runtime + law.dot(constants, terms) * GIB / tp
        layers = np.ceil(self.facts.num_layers / pps)[:, None]
        whole = middle + layers * count.layer_bytes + count.first_bytes + count.last_bytes
        residuals = self.calibration.memory_residuals
        unsure = whole * (residuals.p90 if residuals else 0.0)
        reserved = middle + whole * self.calibration.memory_margin
        return Footprint(
            count.layer_bytes, count.first_bytes, count.last_bytes, count.tied_saving_bytes, np.ceil(reserved),
            np.maximum(middle - unsure, 0.0), np.maximum(middle + unsure, reserved),
        )  # fmt: skip

    def _multiplied(self, table: Table) -> tuple[Array, Array, Array, Array]:
        """Through, layer, ends in ms, and the relative standard error of through: x' C x and the fit's residual."""
        names = [constant.name for constant in self.calibration.latency]
        values = {constant.name: constant.value for constant in self.calibration.latency}
        constants = np.array([values.get(name, 0.0) for name in table.names])
        chosen = [table.names.index(name) for name in names if name in table.names]
        rows = [i for i, name in enumerate(names) if name in table.names]
        covariance = _square(self.calibration.covariance)[np.ix_(rows, rows)]
        through_ms = table.through @ constants
        x = table.through[..., chosen]
        variance = np.maximum(((x @ covariance) * x).sum(axis=-1), 0.0)
        left = self.calibration.latency_residuals
        residual = max(1.4826 * left.median, left.p90 / 1.645)
        error = np.sqrt(variance / np.maximum(through_ms, 1e-12) ** 2 + residual**2)
        return through_ms, table.layer @ constants, table.ends @ constants, error


def _decode(facts: ModelFacts, rig: law.Rig, pps: Array, batches: Array, workload: Workload) -> Table:
    stages = pps[:, None]
    passes = law.decode_terms(
        facts, rig, batch=batches / micro_batches(pps, batches),
        context_tokens=workload.input_tokens + workload.output_tokens / 2,
        num_layers=facts.num_layers, num_stages=stages, fullest=np.ceil(facts.num_layers / stages),
    )  # fmt: skip
    return _table(passes, facts.num_layers, (len(pps), len(batches)))


def _prefill(facts: ModelFacts, rig: law.Rig, pps: Array, workload: Workload) -> Table:
    passes = law.prefill_terms(
        facts, rig, batch=1.0, input_tokens=float(workload.input_tokens),
        num_layers=facts.num_layers, num_stages=pps, fullest=np.ceil(facts.num_layers / pps),
    )  # fmt: skip
    return _table(passes, facts.num_layers, (len(pps),))


def _table(passes: law.Passes, num_layers: int, shape: tuple[int, ...]) -> Table:
    names = tuple(dict.fromkeys((*passes.layer, *passes.ends)))
    layer, ends, work = (np.zeros((*shape, len(names))) for _ in range(3))
    for i, name in enumerate(names):
        if name in passes.layer:
            layer[..., i] = passes.layer[name]
        if name in passes.ends:
            ends[..., i] = passes.ends[name]
            if not name.removeprefix("prompt_").startswith(_APART):
                work[..., i] = passes.ends[name]
    return Table(names, num_layers * layer + ends, layer, work)


def _square(lower: tuple[tuple[float, ...], ...]) -> Array:
    size = len(lower)
    full = np.zeros((size, size))
    for i, row in enumerate(lower):
        full[i, : i + 1] = row
        full[: i + 1, i] = row
    return full


def _runtime_gib(constants: dict[str, float], tp: int, pp: int) -> float:
    """On each GPU: as measured at these degrees, else the most that any GPU took at others."""
    exact = constants.get(f"runtime.tp{tp}.pp{pp}")
    if exact is not None:
        return exact / (tp * pp)
    each = [0.0]
    for name, value in constants.items():
        if name.startswith("runtime.tp"):
            ranks, stages = name.removeprefix("runtime.tp").split(".pp")
            each.append(value / (int(ranks) * int(stages)))
    return max(each)
