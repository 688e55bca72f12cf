"""intent.accepted, measurement.requested -> fingerprint.measured | measurement.requested | deployment.failed

A cluster has a profiler for each GPU type and engine: an intent goes round those that have not measured its model.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from maveriq.contracts import (
    Admission,
    DeploymentFailed,
    FailureReason,
    Fingerprint,
    FingerprintMeasured,
    IntentAccepted,
    MeasurementRequested,
    ModelFacts,
    Precision,
)
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.measuring import ModelUnreadable, Probe, ProbeFailed
from maveriq_profiler.orders import Reading
from maveriq_profiler.rigs import Rigs, RigSeen

log = structlog.get_logger()

Answer = FingerprintMeasured | MeasurementRequested | DeploymentFailed


@dataclass(frozen=True, slots=True)
class Handlers:
    probe: Probe
    catalog: Catalog
    rigs: Rigs

    async def on_intent_accepted(self, event: IntentAccepted) -> Answer:
        return await self._measure(event.deployment_id, event.admission, asked=())

    async def on_measurement_requested(self, event: MeasurementRequested) -> Answer:
        return await self._measure(event.deployment_id, event.admission, event.asked)

    async def _measure(self, deployment_id: UUID, admission: Admission, asked: tuple[str, ...]) -> Answer:
        """Measure here, then hand on to a rig that has not measured yet, or answer."""
        wanted = tuple(variant.precision for variant in admission.model.variants)
        try:
            reading = await self.probe.read(admission.model.source)
        except ModelUnreadable as error:
            return _failed(deployment_id, FailureReason.MODEL_UNREADABLE, str(error))
        problem = await self._problem_here(reading, wanted)
        asked = (*asked, self.probe.rig.name)
        known = [f for f in await self.catalog.of_shape(reading.facts.shape_key) if f.precision in wanted]
        known.sort(key=lambda f: wanted.index(f.precision))
        others = missing(await self.rigs.present(), known, wanted, asked)
        if others:
            return MeasurementRequested(deployment_id=deployment_id, admission=admission, node=others[0], asked=asked)
        if not known:
            return _failed(deployment_id, FailureReason.PROBE_FAILED, problem)
        return FingerprintMeasured(
            deployment_id=deployment_id, admission=admission, facts=reading.facts, fingerprints=tuple(known)
        )

    async def _problem_here(self, reading: Reading, wanted: tuple[Precision, ...]) -> str:
        """Measures what this rig runs; why that gave nothing, or '' where it did."""
        rig = self.probe.rig
        here = [precision for precision in rig.precisions if precision in wanted]
        try:
            for precision in here:
                await self._measured(reading, precision)
        except ProbeFailed as error:
            log.warning("probe failed", problem=str(error))
            return str(error)
        if here:
            return ""
        return (
            f"{rig.engine} on {rig.gpu_type} runs {', '.join(rig.precisions)}; the model's variants are "
            f"{', '.join(wanted)}; register the model with one of the former"
        )

    async def _measured(self, reading: Reading, precision: Precision) -> Fingerprint:
        key = self._key(reading.facts, precision)
        return await self.catalog.get_or_measure(key, lambda: self.probe.measure(reading, precision))

    def _key(self, facts: ModelFacts, precision: Precision) -> Key:
        rig = self.probe.rig
        return Key(facts.shape_key, rig.engine, rig.engine_version, rig.gpu_type, precision, precision)


def missing(
    present: Iterable[RigSeen], known: Sequence[Fingerprint], wanted: Sequence[Precision], asked: Collection[str]
) -> tuple[str, ...]:
    """Names of the rigs that could add something to what is known, and were not asked yet."""
    have = {(f.engine, f.engine_version, f.gpu_type, f.precision) for f in known}
    return tuple(
        rig.name
        for rig in present
        if rig.name not in asked
        and any(
            (rig.engine, rig.engine_version, rig.gpu_type, precision) not in have
            for precision in rig.precisions
            if precision in wanted
        )
    )


def _failed(deployment_id: UUID, reason: FailureReason, detail: str) -> DeploymentFailed:
    return DeploymentFailed(deployment_id=deployment_id, reason=reason, detail=detail)
