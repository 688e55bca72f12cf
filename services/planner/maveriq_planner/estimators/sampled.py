"""The law fitted to the model's own fingerprint. Pure: samples of a few layers in, times and bytes of the whole out."""

from dataclasses import dataclass

import numpy as np

from maveriq.contracts import Basis, Fingerprint, ModelFacts, Workload
from maveriq_planner.arrays import Array
from maveriq_planner.estimate import Errors, Footprint, Kind, Times, dividing, fullest_ms, micro_batches
from maveriq_planner.latency import DecodeLaw, PrefillLaw, fit_decode, fit_prefill
from maveriq_planner.memory import ActivationLaw, counted, fit_activations
from maveriq_planner.workloads import decoding_tokens

_ALL_REDUCES = 2  # a layer: after attention and after the MLP


@dataclass(frozen=True, slots=True)
class SampledLaw:
    kind: Kind
    facts: ModelFacts
    fingerprint: Fingerprint
    decode: DecodeLaw
    prefill: PrefillLaw
    activations: ActivationLaw
    basis: Basis = Basis.FINGERPRINT

    @property
    def others(self) -> float:
        return self.fingerprint.others

    @property
    def tp_degrees(self) -> tuple[int, ...]:
        return dividing(self.fingerprint.tp_degrees, self.facts)

    @property
    def max_pp(self) -> int:
        return self.fingerprint.max_pp

    @property
    def max_batch(self) -> int:
        """Beyond the measured batches a layer may turn from memory-bound to compute-bound: nothing is claimed there."""
        return self.decode.batches[-1]

    def times(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Times:
        num_layers = self.facts.num_layers
        hops_ms = self.fingerprint.hop_ms * (pps - 1)
        groups = micro_batches(pps, batches)
        layer_ms, ends_ms = self._step(tp, batches / groups, workload)
        prompt_layer_ms, prompt_ends_ms = (np.full(len(pps), ms) for ms in self._prompt(tp, workload))
        stage_ms = fullest_ms(num_layers, pps[:, None], layer_ms, ends_ms)
        return Times(
            prefill_ms=num_layers * prompt_layer_ms + prompt_ends_ms + hops_ms,
            prefill_stage_ms=fullest_ms(num_layers, pps, prompt_layer_ms, prompt_ends_ms),
            step_ms=np.maximum(num_layers * layer_ms + ends_ms + hops_ms[:, None], groups * stage_ms),
            layer_ms=layer_ms,
        )

    def errors(self, tp: int, pps: Array, batches: Array, workload: Workload) -> Errors:
        num_layers = self.facts.num_layers
        each = batches / micro_batches(pps, batches)
        layer_ms, ends_ms = self._step(tp, each, workload)
        deviation_ms = self.decode.deviation_ms(num_layers, each, decoding_tokens(workload))
        prompt_layer_ms, prompt_ends_ms = self._prompt(tp, workload)
        prompt_deviation_ms = self.prefill.deviation_ms(num_layers, workload.input_tokens)
        prompt = np.hypot(
            prompt_deviation_ms / (num_layers * prompt_layer_ms + prompt_ends_ms), self.prefill.uncertainty.noise
        )
        return Errors(
            prefill=np.full(len(pps), prompt),
            step=np.hypot(deviation_ms / (num_layers * layer_ms + ends_ms), self.decode.uncertainty.noise),
        )

    def _step(self, tp: int, each: Array, workload: Workload) -> tuple[Array, Array]:
        """A layer and the ends of a step of `each` requests, ms."""
        layer_ms = self.decode.at_layer(each, decoding_tokens(workload)) / tp + self._reduce_ms(tp)
        return layer_ms, self.decode.at_ends(each)

    def _prompt(self, tp: int, workload: Workload) -> tuple[float, float]:
        """A layer and the ends of one prompt, ms.

        Its layers are not credited with TP: their all-reduces are bound by bandwidth, which is not measured.
        """
        layer_ms = self.prefill.at_layer(workload.input_tokens) + self._reduce_ms(tp)
        return layer_ms, self.prefill.at_ends(workload.input_tokens)

    def _reduce_ms(self, tp: int) -> float:
        """A ring, in hops; measured nowhere yet: an upper bound."""
        return _ALL_REDUCES * 2 * (tp - 1) * self.fingerprint.hop_ms

    def footprint(self, tp: int, pps: Array, slots: Array, context_tokens: int) -> Footprint:
        """As much as any sample took; the least is what the fit says of the samples' middle."""
        kind = self.kind
        count = counted(self.facts, kind.engine, kind.precision, kind.kv_precision, tp, slots, context_tokens)
        taken = [sample.runtime_bytes for sample in self.fingerprint.samples]
        activations = np.tile(self.activations.at(context_tokens, slots), (len(pps), 1))
        return Footprint(
            count.layer_bytes, count.first_bytes, count.last_bytes, count.tied_saving_bytes,
            max(taken) + activations, min(taken) + activations / self.activations.raised, max(taken) + activations,
        )  # fmt: skip


def sampled(kind: Kind, facts: ModelFacts, fingerprint: Fingerprint) -> SampledLaw:
    """Fits; done once for many configurations."""
    return SampledLaw(
        kind, facts, fingerprint, fit_decode(facts, fingerprint), fit_prefill(facts, fingerprint),
        fit_activations(fingerprint),
    )  # fmt: skip
