"""What one layer takes by the planner's laws. Pure: an estimator in, milliseconds of layer, ends and hop out.

The estimators predict whole replicas; a split needs their parts. Where a law cannot be taken apart, as a vendor's
tables, there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from maveriq import law
from maveriq.contracts import Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Estimator, Kind
from maveriq_planner.estimators.calibrated import CalibratedLaw
from maveriq_planner.estimators.sampled import SampledLaw
from maveriq_planner.memory import GIB

_HOPS = ("hop.", "prompt_hop.")
_IDLE = ("idle.", "prompt_idle")
"""Of a pass's ends: what is between stages, and what a pipeline spares."""
_APART = {"num_layers": 2, "num_stages": 2, "fullest": 1}  # one layer, one hop, and one layer beside the fullest stage


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one pass of one micro-batch, ms."""

    layer: float
    ends: float
    """On the last stage, as lm_head is there."""
    hop: float
    spared: float = 0.0
    """By each layer that is not on the fullest stage: one rank prepares while another computes."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Parts of decode steps, at B batches."""

    layer: Array  # [B]
    ends: Array
    hop: Array
    spared: Array


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes on one GPU."""

    layer: float
    first: float
    last: float
    tied_saving: float
    runtime: float


class LayerLaw(Protocol):
    """One GPU type, one precision."""

    @property
    def estimator(self) -> Estimator:
        """Of whole replicas, whose parts these are."""
        ...

    @property
    def kind(self) -> Kind: ...

    @property
    def max_batch(self) -> int: ...

    def prefill(self, batch: int, workload: Workload) -> Parts: ...

    def decode(self, batch: int, workload: Workload) -> Parts: ...

    def steps(self, batches: Array, workload: Workload) -> Steps: ...

    def room(self, num_stages: int, num_requests: int, prefill_batch: int, workload: Workload) -> Room: ...


def layer_law(estimator: Estimator) -> LayerLaw | None:
    """None: this law cannot be taken apart."""
    match estimator:
        case CalibratedLaw():
            return CalibratedLayers(estimator, {c.name: c.value for c in estimator.calibration.latency})
        case SampledLaw():
            return SampledLayers(estimator)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class CalibratedLayers:
    estimator: CalibratedLaw
    constants: Mapping[str, float]

    @property
    def kind(self) -> Kind:
        return self.estimator.kind

    @property
    def max_batch(self) -> int:
        return self.estimator.max_batch

    @property
    def _rig(self) -> law.Rig:
        calibration, kind = self.estimator.calibration, self.estimator.kind
        return law.Rig(calibration.engine, kind.precision, kind.kv_precision, 1, calibration.scope.batches)

    def prefill(self, batch: int, workload: Workload) -> Parts:
        return self._parts(law.prefill_terms(
            self.estimator.facts, self._rig, batch=float(batch), input_tokens=float(workload.input_tokens),
            **_APART,
        ))  # fmt: skip

    def decode(self, batch: int, workload: Workload) -> Parts:
        return _of_one(self.steps(np.array([float(batch)]), workload))

    def steps(self, batches: Array, workload: Workload) -> Steps:
        layer, ends, hop, spared = self._apart(law.decode_terms(
            self.estimator.facts, self._rig, batch=batches, context_tokens=_context(workload), **_APART,
        ))  # fmt: skip
        each = [np.broadcast_to(np.asarray(ms, dtype=float), batches.shape) for ms in (layer, ends, hop, spared)]
        return Steps(*each)

    def room(self, num_stages: int, num_requests: int, prefill_batch: int, workload: Workload) -> Room:
        return _with_prompts(self.estimator, num_stages, num_requests, workload, self._prompts(prefill_batch, workload))

    def _prompts(self, prefill_batch: int, workload: Workload) -> float:
        """Activations of the prompts beyond the one that the estimator has counted."""
        tokens = (prefill_batch - 1) * workload.input_tokens
        terms = law.activation_terms(self.estimator.facts, self._rig, num_stages=1, tokens=tokens)
        margin = 1 + self.estimator.calibration.memory_margin
        return float(law.dot(self.estimator.memory, terms)) * GIB * margin

    def _parts(self, passes: law.Passes) -> Parts:
        return Parts(*(float(ms) for ms in self._apart(passes)))

    def _apart(self, passes: law.Passes) -> tuple[law.Quantity, law.Quantity, law.Quantity, law.Quantity]:
        """Layer, ends, hop, spared."""
        hop = {name: value for name, value in passes.ends.items() if name.startswith(_HOPS)}
        idle = {name: -value for name, value in passes.ends.items() if name.startswith(_IDLE)}
        work = {name: value for name, value in passes.ends.items() if not name.startswith((*_HOPS, *_IDLE))}
        known = self.constants
        return law.dot(known, passes.layer), law.dot(known, work), law.dot(known, hop), law.dot(known, idle)


@dataclass(frozen=True, slots=True)
class SampledLayers:
    estimator: SampledLaw

    @property
    def kind(self) -> Kind:
        return self.estimator.kind

    @property
    def max_batch(self) -> int:
        return self.estimator.max_batch

    def prefill(self, batch: int, workload: Workload) -> Parts:
        each, tokens = self.estimator.prefill, workload.input_tokens
        layer = each.layer_fixed_ms + batch * (each.at_layer(tokens) - each.layer_fixed_ms)
        ends = each.ends_fixed_ms + batch * (each.at_ends(tokens) - each.ends_fixed_ms)
        return Parts(layer, ends, self.estimator.fingerprint.hop_ms)

    def decode(self, batch: int, workload: Workload) -> Parts:
        return _of_one(self.steps(np.array([float(batch)]), workload))

    def steps(self, batches: Array, workload: Workload) -> Steps:
        each, hop_ms = self.estimator.decode, self.estimator.fingerprint.hop_ms
        layer = each.at_layer(batches, _context(workload))
        return Steps(layer, each.at_ends(batches), np.full(len(batches), hop_ms), np.zeros(len(batches)))

    def room(self, num_stages: int, num_requests: int, prefill_batch: int, workload: Workload) -> Room:
        activations = self.estimator.activations
        context = workload.input_tokens + workload.output_tokens
        one, all_ = (float(activations.at(context, np.array(float(n)))) for n in (0, (prefill_batch - 1) * context))
        return _with_prompts(self.estimator, num_stages, num_requests, workload, all_ - one)


def _with_prompts(
    estimator: Estimator, num_stages: int, num_requests: int, workload: Workload, prompts_bytes: float
) -> Room:
    context = workload.input_tokens + workload.output_tokens
    found = estimator.footprint(1, np.array([float(num_stages)]), np.array([float(num_requests)]), context)
    runtime = float(found.runtime_bytes[0, 0]) + prompts_bytes
    return Room(float(found.layer_bytes[0]), found.first_bytes, found.last_bytes, found.tied_saving_bytes, runtime)


def _of_one(steps: Steps) -> Parts:
    return Parts(*(float(ms[0]) for ms in (steps.layer, steps.ends, steps.hop, steps.spared)))


def _context(workload: Workload) -> float:
    """Tokens that a step finds in the cache, on average."""
    return workload.input_tokens + workload.output_tokens / 2
