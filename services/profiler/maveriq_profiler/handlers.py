"""intent.accepted -> fingerprint.measured | deployment.failed"""

from dataclasses import dataclass

from maveriq.contracts import (
    DeploymentFailed,
    FailureReason,
    Fingerprint,
    FingerprintMeasured,
    IntentAccepted,
    ModelFacts,
    Precision,
)
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.measuring import ModelUnreadable, Probe, ProbeFailed
from maveriq_profiler.orders import Reading


@dataclass(frozen=True, slots=True)
class Handlers:
    probe: Probe
    catalog: Catalog

    async def on_intent_accepted(self, event: IntentAccepted) -> FingerprintMeasured | DeploymentFailed:
        wanted = tuple(variant.precision for variant in event.admission.model.variants)
        try:
            reading = await self.probe.read(event.admission.model.source)
            fingerprints = await self._fingerprints(reading, wanted)
        except ModelUnreadable as error:
            return _failed(event, FailureReason.MODEL_UNREADABLE, str(error))
        except ProbeFailed as error:
            return _failed(event, FailureReason.PROBE_FAILED, str(error))
        return FingerprintMeasured(
            deployment_id=event.deployment_id,
            admission=event.admission,
            facts=reading.facts,
            fingerprints=fingerprints,
        )

    async def _fingerprints(self, reading: Reading, wanted: tuple[Precision, ...]) -> tuple[Fingerprint, ...]:
        """Measured here, or known of other GPU types and engines. Raises ProbeFailed: nothing is either."""
        rig = self.probe.rig
        here = [precision for precision in rig.precisions if precision in wanted]
        found = [await self._measured(reading, precision) for precision in here]
        known = await self.catalog.of_shape(reading.facts.shape_key)
        found += [f for f in known if f.precision in wanted and (f.engine, f.gpu_type) != (rig.engine, rig.gpu_type)]
        if not found:
            raise ProbeFailed(
                f"{rig.engine} on {rig.gpu_type} runs {', '.join(rig.precisions)}; the model's variants are "
                f"{', '.join(wanted)}; register the model with one of the former"
            )
        return tuple(found)

    async def _measured(self, reading: Reading, precision: Precision) -> Fingerprint:
        key = self._key(reading.facts, precision)
        return await self.catalog.get_or_measure(key, lambda: self.probe.measure(reading, precision))

    def _key(self, facts: ModelFacts, precision: Precision) -> Key:
        rig = self.probe.rig
        return Key(facts.shape_key, rig.engine, rig.engine_version, rig.gpu_type, precision, precision)


def _failed(event: IntentAccepted, reason: FailureReason, detail: str) -> DeploymentFailed:
    return DeploymentFailed(deployment_id=event.deployment_id, reason=reason, detail=detail)
