"""The law of several calibrated GPU types, multiplied out together. Pure: constants and a model's shape in, arrays out.

What does not depend on the constants is worked out once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from maveriq import law
from maveriq.contracts import Calibration, ModelFacts, Workload
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.estimate import fullest_ms, micro_batches
from maveriq_planner.estimators.constants import Constants, constants_of
from maveriq_planner.estimators.terms import table_of
from maveriq_planner.memory import GIB, Counted, counted

_LEAST_MS = 1e-12  # all constants may be 0


@dataclass(frozen=True, slots=True)
class Passes:
    """Of one rig on T GPU types, P pipeline degrees from 1 on."""

    through: Array  # [P x B + P, N]
    """Terms of all stages, one after the other, shape by shape."""
    through_ms: Array  # [T, P x B + P]
    prefill_ms: Array  # [T, P]
    prefill_stage_ms: Array  # [T, P]
    step_ms: Array  # [T, P, B]
    layer_ms: Array  # [T, P, B]


@dataclass(frozen=True, slots=True)
class Sizes:
    count: Counted
    layer_bytes: Array  # [T, S]
    runtime_bytes: Array  # [T, P, S]
    low_bytes: Array
    high_bytes: Array


@dataclass(frozen=True, slots=True)
class Laws:
    """Of T calibrations, for one model. Remembers what it was asked."""

    facts: ModelFacts
    constants: Constants
    known: dict[tuple[object, ...], Passes] = field(default_factory=dict[tuple[object, ...], Passes])
    sized: dict[tuple[object, ...], Sizes] = field(default_factory=dict[tuple[object, ...], Sizes])
    covariances: dict[int, Array] = field(default_factory=dict[int, Array])

    def passes(self, rig: law.Rig, num_pps: int, batches: Array, workload: Workload) -> Passes:
        key = (rig, batches.tobytes(), workload.input_tokens, workload.output_tokens)
        found = self.known.get(key)
        if found is None or found.prefill_ms.shape[1] < num_pps:
            found = self.known[key] = self._multiplied(rig, num_pps, batches, workload)
        return found

    def sizes(self, rig: law.Rig, num_pps: int, slots: Array, context_tokens: int) -> Sizes:
        key = (rig, slots.tobytes(), context_tokens)
        found = self.sized.get(key)
        if found is None or found.runtime_bytes.shape[1] < num_pps:
            found = self.sized[key] = self._counted(rig, num_pps, slots, context_tokens)
        return found

    def error(self, i: int, passes: Passes, shapes: Indices) -> Array:
        """Relative standard error of the time through all stages: that of the constants, x' C x, and what the fit left.

        Args:
            shapes: rows of `through`.
        """
        if i not in self.covariances:
            self.covariances[i] = self.constants.covariance(i)
        x = passes.through.take(shapes, axis=0)
        variance = np.maximum(np.einsum("rn,rn->r", x @ self.covariances[i], x), 0.0)
        through_ms = np.maximum(passes.through_ms[i].take(shapes), _LEAST_MS)
        error: Array = np.sqrt(variance / through_ms**2 + self.constants.residual[i] ** 2)
        return error

    def _multiplied(self, rig: law.Rig, num_pps: int, batches: Array, workload: Workload) -> Passes:
        num_layers, pps = self.facts.num_layers, np.arange(1.0, num_pps + 1)
        table = table_of(self.facts, rig, self.constants.places, pps, batches, workload)
        values, between = self.constants.values, self.constants.between
        # One by one each is below the size from which BLAS starts threads, which take longer than the product.
        layer_ms, ends_ms, work_ms = values @ table.layer, values @ table.ends, (values * ~between) @ table.ends
        through_ms = num_layers * layer_ms + ends_ms
        steps, shape = num_pps * len(batches), (len(values), num_pps, len(batches))
        each_ms, step_work_ms, step_ms = (part[:, :steps].reshape(shape) for part in (layer_ms, work_ms, through_ms))
        stage_ms = fullest_ms(num_layers, pps[:, None], each_ms, step_work_ms)
        return Passes(
            np.ascontiguousarray((num_layers * table.layer + table.ends).T), through_ms,
            prefill_ms=through_ms[:, steps:],
            prefill_stage_ms=fullest_ms(num_layers, pps, layer_ms[:, steps:], work_ms[:, steps:]),
            step_ms=np.maximum(step_ms, micro_batches(pps, batches) * stage_ms),
            layer_ms=each_ms,
        )  # fmt: skip

    def _counted(self, rig: law.Rig, num_pps: int, slots: Array, context_tokens: int) -> Sizes:
        """A layer counts with what an allocator rounds its buffers up by.

        Runtime and activations are raised by the largest share by which they were ever predicted too small; weights
        and cache are counted.
        """
        c = self.constants
        count = counted(self.facts, rig.engine, rig.precision, rig.kv_precision, rig.tp, slots, context_tokens)
        terms = law.activation_terms(self.facts, rig, num_stages=1.0, tokens=context_tokens + slots)
        activations = sum(c.memory_of(name)[:, None] * value for name, value in terms.items())
        middle = (c.runtimes(rig.tp, num_pps)[:, :, None] + np.asarray(activations)[:, None] / rig.tp) * GIB
        layer_bytes = count.layer_bytes + np.ceil(c.memory_of("buffers") * GIB / 1024)[:, None]
        unsure = middle * c.memory_miss[:, None, None]
        reserved = middle * (1 + c.memory_margin[:, None, None])
        return Sizes(
            count, layer_bytes, np.ceil(reserved), np.maximum(middle - unsure, 0.0),
            np.maximum(middle + unsure, reserved),
        )  # fmt: skip


def laws_of(facts: ModelFacts, calibrations: Sequence[Calibration]) -> Laws:
    return Laws(facts, constants_of(calibrations))
