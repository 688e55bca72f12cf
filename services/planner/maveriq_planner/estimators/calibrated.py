"""The law of a calibrated GPU type. Pure: constants and a model's shape in, times and bytes out; nothing was run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from maveriq import law
from maveriq.contracts import Basis, Calibration, ModelFacts, Workload
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.estimate import Errors, Footprint, Kind, Times, dividing
from maveriq_planner.estimators.laws import Laws


@dataclass(frozen=True, slots=True)
class CalibratedLaw:
    kind: Kind
    laws: Laws
    which: int
    """Of the calibrations in `laws`."""
    basis: Basis = Basis.CALIBRATION

    @property
    def calibration(self) -> Calibration:
        return self.laws.constants.calibrations[self.which]

    @property
    def others(self) -> float:
        return self.calibration.others

    @property
    def facts(self) -> ModelFacts:
        return self.laws.facts

    @property
    def memory(self) -> Mapping[str, float]:
        """GiB of each of the memory law's constants."""
        return self.laws.constants.memory[self.which]

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        return dividing(self.calibration.scope.tp_degrees, self.laws.facts)

    @property
    def max_pp(self) -> int:
        """One where no pipeline was seen."""
        return self.calibration.max_pp if max(self.calibration.scope.pp_degrees) > 1 else 1

    @property
    def max_batch(self) -> int:
        return self.calibration.scope.batches[-1]

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        found, i, at = self.laws.passes(self._rig(tp), int(pps[-1]), batches, workload), self.which, _places(pps)
        return Times(
            found.prefill_ms[i][at], found.prefill_stage_ms[i][at], found.step_ms[i][at], found.layer_ms[i][at]
        )

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        found = self.laws.passes(self._rig(tp), int(pps[-1]), batches, workload)
        at, count = pps.astype(np.intp) - 1, len(batches)
        steps = (at[:, None] * count + np.arange(count)).ravel()
        prompts = found.step_ms[0].size + at
        error = self.laws.error(self.which, found, np.concatenate([prompts, steps]))
        return Errors(error[: len(at)], error[len(at) :].reshape(len(at), count))

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        found, i, at = self.laws.sizes(self._rig(tp), int(pps[-1]), slots, context_tokens), self.which, _places(pps)
        count = found.count
        return Footprint(
            found.layer_bytes[i], count.first_bytes, count.last_bytes, count.tied_saving_bytes,
            found.runtime_bytes[i][at], found.low_bytes[i][at], found.high_bytes[i][at],
        )  # fmt: skip

    def _rig(self, tp: int) -> law.Rig:
        c = self.calibration
        return law.Rig(c.engine, self.kind.precision, self.kind.kv_precision, tp, c.scope.batches)


def _places(pps: Array) -> slice | Indices:
    """Of pipeline degrees in arrays that begin with 1; a slice, which copies nothing, where all are asked for."""
    return slice(len(pps)) if len(pps) == pps[-1] else pps.astype(np.intp) - 1
