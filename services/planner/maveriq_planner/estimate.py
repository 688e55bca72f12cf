"""What one engine configuration does for a workload. Pure: measured facts in, predictions out.

`Fit` is the seam: another law is another function of its type. docs/law.md derives this one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from maveriq.contracts import Configuration, Fingerprint, ModelFacts, Prediction, StageMemory, Workload
from maveriq_planner.latency import DecodeLaw, PrefillLaw, fit_decode, fit_prefill
from maveriq_planner.load import Replica, settle
from maveriq_planner.memory import ActivationLaw, fit_activations, replica_bytes, stage_memory

_ALL_REDUCES = 2  # a layer: after attention and after the MLP


@dataclass(frozen=True, slots=True)
class Estimate:
    prediction: Prediction
    memory: StageMemory
    busy_batch: int
    """Requests that the workload keeps in hand: the batch at which TPOT is quoted."""
    capacity_per_s: float
    """Requests that one replica finishes with every slot busy."""
    sustained: bool
    """Whether the workload's rate stays below that."""


class Estimator(Protocol):
    """What one fingerprint says of one model."""

    @property
    def max_batch(self) -> int:
        """Largest batch that it speaks for."""
        ...

    def estimate(self, configuration: Configuration, workload: Workload, accuracy: float | None) -> Estimate:
        """
        Args:
            configuration: of the fingerprint's engine, GPU type and precisions; at most `max_batch`.
            workload: what one replica gets of it.
            accuracy: of this precision, where measured; passed on.
        """
        ...


Fit = Callable[[ModelFacts, Fingerprint], Estimator]
"""From samples to an estimator; done once for many configurations."""


@dataclass(frozen=True, slots=True)
class SampledLaw:
    """The law fitted to this model's own samples, cut or whole."""

    facts: ModelFacts
    hop_ms: float
    runtime_bytes: int
    decode: DecodeLaw
    prefill: PrefillLaw
    activations: ActivationLaw

    @property
    def max_batch(self) -> int:
        """Beyond the measured batches a layer may turn from memory-bound to compute-bound: nothing is claimed there."""
        return self.decode.batches[-1]

    def estimate(self, configuration: Configuration, workload: Workload, accuracy: float | None) -> Estimate:
        output_tokens = workload.output_tokens
        load = settle(self._replica(configuration, workload), workload.request_rate_per_s)
        e2e_ms = load.e2e_ms(output_tokens)
        memory = stage_memory(self.facts, configuration, self.activations, self.runtime_bytes)
        prediction = Prediction(
            ttft_ms=load.ttft_ms,
            tpot_ms=load.tpot_ms,
            e2e_ms=e2e_ms,
            throughput_tokens_per_s=load.capacity_per_s * output_tokens,
            memory_bytes=replica_bytes(memory, configuration, self.facts.num_layers),
            gpu_s=e2e_ms / 1e3 * configuration.num_gpus,
            accuracy=accuracy,
        )
        return Estimate(prediction, memory, load.busy_batch, load.capacity_per_s, load.sustained)

    def _replica(self, c: Configuration, workload: Workload) -> Replica:
        hops_ms = self.hop_ms * (c.pp - 1)
        reduce_ms = _ALL_REDUCES * 2 * (c.tp - 1) * self.hop_ms  # a ring, in hops; measured nowhere yet: an upper bound
        # A prompt's layers are not credited with TP: their all-reduces are bound by bandwidth, which is not measured.
        prompt_layer_ms = self.prefill.at_layer(workload.input_tokens) + reduce_ms
        prompt_ends_ms = self.prefill.at_ends(workload.input_tokens)
        context_tokens = workload.input_tokens + workload.output_tokens / 2

        def step_ms(batch: int) -> float:
            """Up to pp micro-batches follow one another: bound by the way through, or by the fullest stage."""
            groups = min(c.pp, batch)
            layer_ms = self.decode.at_layer(batch / groups, context_tokens) / c.tp + reduce_ms
            ends_ms = self.decode.at_ends(batch / groups)
            through_ms = self.facts.num_layers * layer_ms + ends_ms + hops_ms
            return max(through_ms, groups * self._fullest_ms(c.pp, layer_ms, ends_ms))

        return Replica(
            prefill_ms=self.facts.num_layers * prompt_layer_ms + prompt_ends_ms + hops_ms,
            prefill_stage_ms=self._fullest_ms(c.pp, prompt_layer_ms, prompt_ends_ms),
            step_ms=step_ms,
            output_tokens=workload.output_tokens,
            max_batch=c.max_batch,
        )

    def _fullest_ms(self, pp: int, layer_ms: float, ends_ms: float) -> float:
        """Layers split evenly, the remainder to the first stages, the ends' time on the last."""
        floor, more = divmod(self.facts.num_layers, pp)
        return max((floor + (more > 0)) * layer_ms, floor * layer_ms + ends_ms)


def fit(facts: ModelFacts, fingerprint: Fingerprint) -> Estimator:
    return SampledLaw(
        facts=facts,
        hop_ms=fingerprint.hop_ms,
        runtime_bytes=max(sample.runtime_bytes for sample in fingerprint.samples),
        decode=fit_decode(facts, fingerprint),
        prefill=fit_prefill(facts, fingerprint),
        activations=fit_activations(fingerprint),
    )
