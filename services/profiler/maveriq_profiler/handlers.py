"""intent.accepted, measurement.requested -> fingerprint.measured | measurement.requested | deployment.failed

A cluster has a profiler for each GPU type and engine: an intent goes round those that neither have measured its model
nor are calibrated for it.
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog

from maveriq.contracts import (
    Admission,
    Calibration,
    CalibrationProgressed,
    CalibrationRequested,
    DeploymentFailed,
    FailureReason,
    FingerprintMeasured,
    IntentAccepted,
    MeasurementProgressed,
    MeasurementRequested,
    MemoryHeld,
    Message,
    Model,
    ModelFacts,
    ServiceTimed,
)
from maveriq_profiler.calibrating import Calibrating
from maveriq_profiler.catalog import Catalog, Key
from maveriq_profiler.coverage import Kind, covered, current, missing
from maveriq_profiler.folding import of_fingerprint
from maveriq_profiler.formats import Format, formats_of, measurable
from maveriq_profiler.learning import Learning
from maveriq_profiler.measuring import ModelUnreadable, Probe, ProbeFailed
from maveriq_profiler.orders import Reading
from maveriq_profiler.remeasuring import Remeasuring
from maveriq_profiler.rigs import Rigs
from maveriq_profiler.variants import own_source, shape_difference

log = structlog.get_logger()

Answer = FingerprintMeasured | MeasurementRequested | DeploymentFailed


@dataclass(frozen=True, slots=True)
class Handlers:
    probe: Probe
    catalog: Catalog
    rigs: Rigs
    calibrating: Calibrating
    learning: Learning
    remeasuring: Remeasuring
    trusts_calibrations: bool = True
    """False: every model is measured, for the planner predicts from fingerprints alone."""

    async def on_intent_accepted(self, event: IntentAccepted) -> Answer:
        return await self._measure(event.deployment_id, event.admission, asked=())

    async def on_measurement_requested(self, event: MeasurementRequested) -> Answer:
        return await self._measure(event.deployment_id, event.admission, event.asked)

    async def on_calibration_requested(self, message: CalibrationRequested) -> CalibrationProgressed | None:
        return await self.calibrating.on_calibration_requested(message)

    async def on_memory_held(self, message: MemoryHeld) -> None:
        await self.calibrating.borrowing.on_memory_held(message)

    async def on_service_timed(self, message: ServiceTimed) -> Sequence[Message]:
        return await self.learning.learn(message)

    async def _measure(self, deployment_id: UUID, admission: Admission, asked: tuple[str, ...]) -> Answer:
        """Measure here, then hand on to a rig that has not measured yet, or answer."""
        wanted = formats_of(admission.model)
        try:
            reading = await self.probe.read(admission.model.source)
        except ModelUnreadable as error:
            return _failed(deployment_id, FailureReason.MODEL_UNREADABLE, str(error))
        if other_shape := await self._other_shape(reading.facts, admission.model):
            return _failed(deployment_id, FailureReason.MODEL_UNREADABLE, other_shape)
        present = [rig for rig in await self.rigs.present() if rig.engine not in reading.cannot_run]
        if (why := reading.cannot_run.get(self.probe.rig.engine)) and not present:
            return _failed(deployment_id, FailureReason.MODEL_UNREADABLE, why)
        calibrations = tuple(
            one
            for one in current(await self.calibrating.samples.calibrations(), present)
            if one.engine not in reading.cannot_run
        )
        known_kinds = self._covered(reading.facts, admission, calibrations)
        problem = await self._problem_here(deployment_id, reading, admission.model, known_kinds)
        asked = (*asked, self.probe.rig.name)
        taken = {f: Kind.of(f) for f in await self.catalog.of_shape(reading.facts.shape_key)}
        known = [
            f
            for f, kind in taken.items()
            if kind.format in wanted and kind not in known_kinds and kind.engine not in reading.cannot_run
        ]
        known.sort(key=lambda f: wanted.index(taken[f].format))
        others = missing(present, known_kinds.union(taken.values()), measurable(admission.model), asked)
        if others:
            return MeasurementRequested(deployment_id=deployment_id, admission=admission, node=others[0], asked=asked)
        if not known and not known_kinds:
            return _failed(deployment_id, FailureReason.PROBE_FAILED, problem)
        measured = FingerprintMeasured(
            deployment_id=deployment_id, admission=admission, facts=reading.facts, fingerprints=tuple(known),
            calibrations=calibrations,
        )  # fmt: skip
        if not admission.dry_run:
            await self.learning.watching.remember(measured)
        return measured

    async def _other_shape(self, facts: ModelFacts, model: Model) -> str:
        """Why a variant's own checkpoint is none of the model's; '' where each that can be read here is one."""
        for variant in model.variants:
            source = own_source(model, variant)
            if source is not None:
                with suppress(ModelUnreadable):
                    theirs = await self.probe.read(source)
                    if problem := shape_difference(facts, theirs.facts, variant.label):
                        return problem
        return ""

    def _covered(self, facts: ModelFacts, admission: Admission, calibrations: Sequence[Calibration]) -> set[Kind]:
        if not self.trusts_calibrations:
            return set()
        workload = admission.intent.workload
        tokens = workload.input_tokens + workload.output_tokens
        return covered(facts, formats_of(admission.model), calibrations, tokens)

    async def _problem_here(self, deployment_id: UUID, reading: Reading, model: Model, known_kinds: set[Kind]) -> str:
        """Measures what this rig runs and is not calibrated for; why that gave nothing, or '' where it did."""
        rig = self.probe.rig
        if rig.engine in reading.cannot_run:
            return reading.cannot_run[rig.engine]
        here = [each for each in measurable(model) if each.runs_in(rig.precisions)]
        wanted = [one for one in here if Kind(rig.engine, rig.engine_version, rig.gpu_type, one) not in known_kinds]
        try:
            await self._measure_all(deployment_id, reading, wanted)
        except ProbeFailed as error:
            log.warning("probe failed", error=str(error))
            return str(error)
        if here:
            return ""
        return (
            f"{rig.engine} on {rig.gpu_type} runs {', '.join(rig.precisions)}; the model's variants are "
            f"{', '.join(variant.label for variant in model.variants)}; register the model with one of the former"
        )

    async def _measure_all(self, deployment_id: UUID, reading: Reading, wanted: Sequence[Format]) -> None:
        """Raises ProbeFailed."""
        new = [each for each in wanted if await self.catalog.get(self._key(reading, each)) is None]
        with self.calibrating.preemption.by_intent() if new else nullcontext():
            for each in wanted:
                if each in new:
                    what = f"measuring {each} on {self.probe.rig.gpu_type} ({new.index(each) + 1} of {len(new)})"
                    told = MeasurementProgressed(deployment_id=deployment_id, detail=what, told_at=datetime.now(UTC))
                    await self.calibrating.publish(told)
                await self._measured(reading, each)

    def _key(self, reading: Reading, wanted: Format) -> Key:
        return Key.of(reading.facts.shape_key, self.calibrating.pool, wanted)

    async def _measured(self, reading: Reading, wanted: Format) -> None:
        """Its readings are samples of the GPU type too."""
        key = self._key(reading, wanted)
        found = await self.catalog.get_or_measure(key, lambda: self.probe.measure(reading, wanted))
        await self.remeasuring.note(key, reading, found)
        if not self.probe.rig.teaches(wanted):
            return
        samples = of_fingerprint(reading.facts, found)
        await self.calibrating.samples.keep_fingerprint(self.calibrating.pool, key.named, samples, found.cost_s)


def _failed(deployment_id: UUID, reason: FailureReason, detail: str) -> DeploymentFailed:
    return DeploymentFailed(deployment_id=deployment_id, reason=reason, detail=detail)
