"""Messages in, messages out: intents are admitted, facts folded into their deployment, dead requests answered."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import structlog

from maveriq.bus import DeadRequest, Handler, Rejected
from maveriq.contracts import (
    Admission,
    CalibrationProgressed,
    CalibrationUpdated,
    DeploymentChanged,
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    DeploymentRestored,
    DeploymentWaiting,
    Fault,
    FingerprintMeasured,
    IntentAccepted,
    IntentSubmitted,
    InventoryChanged,
    MeasurementProgressed,
    MemoryDrifted,
    Message,
    ModelRegistered,
    ModelSubmitted,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    PredictionMissed,
    ReleaseAccepted,
    ReleaseRequested,
    ReplicaFailed,
    ReplicaLost,
    ReplicaReady,
    State,
    TrafficDrifted,
)
from maveriq_ingress.admission import admit, taken
from maveriq_ingress.calibrations import Calibrations
from maveriq_ingress.folding import Fact, Record, replans
from maveriq_ingress.fragments import fragments_of
from maveriq_ingress.inventory import Inventories
from maveriq_ingress.metrics import Metrics
from maveriq_ingress.models import Models
from maveriq_ingress.statuses import Statuses

log = structlog.get_logger()


class RequestQueues(Protocol):
    """What of the bus the handlers need."""

    async def open_requests(self, deployment_id: UUID, gpu_types: Sequence[str] = ()) -> None: ...

    async def close_requests(
        self, deployment_id: UUID, answer: Callable[[DeadRequest], Awaitable[None]], gpu_types: Sequence[str] = ()
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Handlers:
    models: Models
    statuses: Statuses
    inventories: Inventories
    calibrations: Calibrations
    queues: RequestQueues
    answer: Callable[[DeadRequest], Awaitable[None]]
    now: Callable[[], datetime]
    metrics: Metrics = field(default_factory=Metrics)

    async def on_model_submitted(self, message: ModelSubmitted) -> Message:
        await self.models.register(message.model, self.now())
        return ModelRegistered(model=message.model)

    async def on_intent_submitted(self, message: IntentSubmitted) -> tuple[Message, ...]:
        """Raises Rejected: unknown model, or an id that another intent has."""
        record = await self.statuses.record(message.deployment_id)
        if record is None or record.admission is None:
            registered = {name: one.model for name, one in (await self.models.all()).items()}
            heard = await self.inventories.all()
            admitted = admit(message, registered, fragments_of((one.inventory, one.heard_at) for one in heard))
            if not isinstance(admitted, Admission):
                raise Rejected(*admitted)
            accepted = IntentAccepted(deployment_id=message.deployment_id, admission=admitted)
            record = await self.statuses.accept(accepted, self.now())
        assert record.admission is not None, "accept leaves none without"
        fault = taken(message, record.admission)
        if fault is not None:
            raise Rejected(fault)
        if record.state is not State.ACCEPTED:
            return _changed(record)  # it was passed on: facts have followed
        if not message.dry_run:
            await self.queues.open_requests(message.deployment_id)
        return (IntentAccepted(deployment_id=record.deployment_id, admission=record.admission), *_changed(record))

    async def on_release_requested(self, message: ReleaseRequested) -> tuple[Message, ...]:
        """Raises Rejected: unknown deployment."""
        record = await self.statuses.record(message.deployment_id)
        if record is None or record.intent is None:
            raise Rejected(unknown(message.deployment_id))
        if record.state in (State.RELEASED, State.FAILED):
            return _changed(record)
        accepted = ReleaseAccepted(deployment_id=message.deployment_id)
        record = await self.statuses.learn(accepted, self.now())
        return (accepted, *_changed(record))

    async def on_fact(self, message: Fact) -> tuple[Message, ...]:
        return _changed(await self.statuses.learn(message, self.now()))

    async def on_plan_computed(self, message: PlanComputed | DeploymentRestored) -> tuple[Message, ...]:
        """The queues of a fleet's GPU types are open before anybody is told to send there."""
        record = await self.statuses.learn(message, self.now())
        if record.lanes and not record.ended:
            await self.queues.open_requests(message.deployment_id, record.lanes)
            record = await self.statuses.record(message.deployment_id) or record
            if record.ended:  # meanwhile
                await self.queues.close_requests(message.deployment_id, self.answer, record.lanes)
        return _changed(record)

    async def on_deployment_restored(self, message: DeploymentRestored) -> tuple[Message, ...]:
        """What was emptied forgot its model too."""
        await self.models.restore(message.admission.model, self.now())
        return await self.on_plan_computed(message)

    async def on_prediction_missed(self, message: PredictionMissed) -> tuple[Message, ...]:
        self.metrics.count_missed(message)
        return await self.on_fact(message)

    async def on_traffic_drifted(self, message: TrafficDrifted) -> tuple[Message, ...]:
        self.metrics.count_drifted()
        return await self.on_fact(message)

    async def on_end(self, message: DeploymentReleased | DeploymentFailed) -> tuple[Message, ...]:
        record = await self.statuses.learn(message, self.now())
        if isinstance(message, DeploymentFailed) and replans(record, message):
            return ()
        await self.queues.close_requests(message.deployment_id, self.answer, record.lanes)
        return _changed(record)

    async def on_inventory_changed(self, message: InventoryChanged) -> None:
        await self.inventories.keep(message, self.now())

    async def on_memory_drifted(self, message: MemoryDrifted) -> None:
        """Once a drift; whoever looks later sees it at its GPU."""
        log.warning(
            "memory drifted", node=message.node, gpu=message.gpu, detail=message.detail,
            reserved_bytes=message.reserved_bytes, own_bytes=message.own_bytes, foreign_bytes=message.foreign_bytes,
        )  # fmt: skip

    def all(self) -> list[Handler[Any]]:
        return [
            Handler(ModelSubmitted, self.on_model_submitted),
            Handler(IntentSubmitted, self.on_intent_submitted),
            Handler(ReleaseRequested, self.on_release_requested),
            Handler(MeasurementProgressed, self.on_fact),
            Handler(FingerprintMeasured, self.on_fact),
            Handler(PredictionMissed, self.on_prediction_missed),
            Handler(TrafficDrifted, self.on_traffic_drifted),
            Handler(PlanComputed, self.on_plan_computed),
            Handler(DeploymentRestored, self.on_deployment_restored),
            Handler(PlanPreviewed, self.on_fact),
            Handler(DeploymentWaiting, self.on_fact),
            Handler(PlacementReserved, self.on_fact),
            Handler(ReplicaReady, self.on_fact),
            Handler(ReplicaFailed, self.on_fact),
            Handler(ReplicaLost, self.on_fact),
            Handler(DeploymentDraining, self.on_fact),
            Handler(DeploymentReleased, self.on_end),
            Handler(DeploymentFailed, self.on_end),
            Handler(InventoryChanged, self.on_inventory_changed),
            Handler(MemoryDrifted, self.on_memory_drifted),
            Handler(CalibrationUpdated, self.calibrations.on_calibration_updated),
            Handler(CalibrationProgressed, self.calibrations.on_calibration_progressed),
        ]


def unknown(deployment_id: UUID) -> Fault:
    return Fault(
        field="deployment_id",
        problem=f"there is no deployment {deployment_id}",
        remedy="name one that was accepted less than a week after its end",
    )


def _changed(record: Record) -> tuple[Message, ...]:
    """The news, also where there is none: a process may have died between keeping it and telling it."""
    deployment = record.deployment()
    if deployment is None:
        return ()
    return (DeploymentChanged(deployment_id=record.deployment_id, deployment=deployment),)
