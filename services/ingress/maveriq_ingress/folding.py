"""What is known of a deployment after one more fact. Pure: record and fact in, record out.

Facts only ever add to the record, so they may come twice and in any order: the record ends the same.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from maveriq.contracts import (
    Admission,
    Calibration,
    Deployment,
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    DeploymentRestored,
    DeploymentWaiting,
    Failure,
    FailureReason,
    Fingerprint,
    FingerprintMeasured,
    Intent,
    IntentAccepted,
    MeasurementProgressed,
    Placement,
    PlacementReserved,
    Plan,
    PlanComputed,
    PlanPreviewed,
    PredictionMissed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaLost,
    ReplicaReady,
    Route,
    State,
    TrafficDrifted,
    Value,
    advance,
)
from maveriq.routing import serving

Fact = (
    IntentAccepted
    | MeasurementProgressed
    | FingerprintMeasured
    | PredictionMissed
    | TrafficDrifted
    | PlanComputed
    | PlanPreviewed
    | DeploymentRestored
    | DeploymentWaiting
    | PlacementReserved
    | ReplicaReady
    | ReplicaFailed
    | ReplicaLost
    | ReleaseAccepted
    | DeploymentDraining
    | DeploymentReleased
    | DeploymentFailed
)

TICK = timedelta(microseconds=1)


class Record(Value):
    """All facts known of one deployment."""

    deployment_id: UUID
    state: State = State.ACCEPTED
    admission: Admission | None = None
    """None: facts came before the intent that they are about, or its record was lost."""
    accepted_at: datetime
    changed_at: datetime
    """Grows with every change, whatever the clock does: of two records, the later is the newer."""
    measuring: MeasurementProgressed | None = None
    """What was last said of it; its model may have been measured since."""
    fingerprints: tuple[Fingerprint, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    prediction_missed: PredictionMissed | None = None
    traffic_drifted: TrafficDrifted | None = None
    plan: Plan | None = None
    placements: tuple[Placement, ...] = ()
    """Every reservation heard of, in order of arrival."""
    ready_tokens: tuple[str, ...] = ()
    lost_tokens: tuple[str, ...] = ()
    """Reservations whose replica failed, is lost or is being drained; a token never comes back."""
    left_tokens: tuple[str, ...] = ()
    """Those of them that the deployment goes on without: another replica has relieved them."""
    replica_failed: ReplicaFailed | None = None
    waiting: DeploymentWaiting | None = None
    """What was last said of memory that it waits for; it may have come since."""
    failure: Failure | None = None
    lanes: tuple[str, ...] = ()
    """GPU types that some plan of it has routed requests to: each has queues until the deployment ends."""

    @property
    def ended(self) -> bool:
        """Nothing more will come of it."""
        dry = self.admission is not None and self.admission.dry_run
        return self.state in (State.RELEASED, State.FAILED) or (dry and self.state is State.PLANNED)

    @property
    def intent(self) -> Intent | None:
        """As admitted; where Redis lost that, as much of it as the placements tell."""
        if self.admission is not None:
            return self.admission.intent
        at = self.placements[-1] if self.placements else None
        return None if at is None else Intent(model=at.model.name, tenant=at.tenant)

    def deployment(self) -> Deployment | None:
        """The record as others see it; None while the intent is not known."""
        intent = self.intent
        if intent is None:
            return None
        ready = set(self.ready_tokens) - set(self.lost_tokens)
        current = self._current()
        serves = tuple(placement for placement in current if placement.token in ready)
        return Deployment(
            deployment_id=self.deployment_id,
            state=self.state,
            intent=intent,
            dry_run=self.admission is not None and self.admission.dry_run,
            accepted_at=self.accepted_at,
            changed_at=self.changed_at,
            measuring=self.measuring.detail if self.measuring is not None and self.state is State.ACCEPTED else None,
            fingerprints=self.fingerprints,
            calibrations=self.calibrations,
            prediction_missed=self.prediction_missed,
            traffic_drifted=self.traffic_drifted,
            plan=self.plan,
            placements=current,
            ready_replicas=tuple(placement.replica for placement in serves),
            routes=self._routes(serves),
            replica_failed=self.replica_failed,
            failure=self.failure,
            waiting=self.waiting.detail if self.waiting is not None and self._waits(self.waiting) else None,
        )

    def _routes(self, serves: Iterable[Placement]) -> tuple[Route, ...]:
        """To those GPU types of the plan that have a replica which takes them."""
        if self.plan is None or self.plan.fleet is None:
            return ()
        own = (lane.gpu_type for placement in serves for lane in placement.lanes if lane.rank == 0)
        return serving(self.plan.fleet.routes, frozenset(own))

    def number(self, failed: ReplicaFailed) -> int:
        """Of its placement: a later one's is greater; -1: nothing was heard of it."""
        return next((placement.number for placement in self.placements if placement.token == failed.token), -1)

    def _waits(self, waiting: DeploymentWaiting) -> bool:
        """Until something is placed after it, or all of it goes."""
        going = self.state in (State.DRAINING, State.RELEASED, State.FAILED)
        return not going and all(placement.number < waiting.num_placed for placement in self.placements)

    def _current(self) -> tuple[Placement, ...]:
        """Of each replica the latest placement, those that are not lost before those that are."""
        lost = set(self.lost_tokens)
        by_replica: dict[int, Placement] = {}
        for placement in self.placements:
            if placement.token in self.left_tokens:
                continue
            known = by_replica.get(placement.replica)
            if known is None or placement.token not in lost or known.token in lost:
                by_replica[placement.replica] = placement
        return tuple(by_replica[replica] for replica in sorted(by_replica))


def fold(record: Record | None, fact: Fact, now: datetime) -> Record:
    """The record once `fact` is known too; the same record where it was known already."""
    if record is None:
        return _learn(Record(deployment_id=fact.deployment_id, accepted_at=now, changed_at=now), fact)
    learned = _learn(record, fact)
    if learned == record:
        return record
    return learned.model_copy(update={"changed_at": max(now, record.changed_at + TICK)})


def _learn(record: Record, fact: Fact) -> Record:
    learned: dict[str, object] = {"state": advance(record.state, _STATES.get(type(fact), State.ACCEPTED))}
    match fact:
        case IntentAccepted() | FingerprintMeasured() | PlanComputed() | PlanPreviewed() | DeploymentRestored():
            learned["admission"] = record.admission or fact.admission
        case PlacementReserved():
            if all(placement.token != fact.placement.token for placement in record.placements):
                learned["placements"] = (*record.placements, fact.placement)
        case ReplicaReady():
            learned["ready_tokens"] = _with(record.ready_tokens, fact.token)
        case MeasurementProgressed():
            learned["measuring"] = max(filter(None, (record.measuring, fact)), key=_said)
        case DeploymentWaiting():
            learned["waiting"] = max(filter(None, (record.waiting, fact)), key=_told)
        case ReplicaFailed():
            learned["lost_tokens"] = _with(record.lost_tokens, fact.token)
            learned["replica_failed"] = max(filter(None, (record.replica_failed, fact)), key=record.number)
        case ReplicaLost():
            learned["lost_tokens"] = _with(record.lost_tokens, fact.token)
        case DeploymentDraining():
            learned["lost_tokens"] = _with(record.lost_tokens, fact.token)
            if fact.goes_on:
                learned["state"] = record.state
                learned["left_tokens"] = _with(record.left_tokens, fact.token)
        case DeploymentFailed() if replans(record, fact):
            return record
        case DeploymentFailed():
            failure = Failure(reason=fact.reason, detail=fact.detail, counteroffers=fact.counteroffers)
            learned["failure"] = record.failure or failure
        case PredictionMissed():
            learned["prediction_missed"] = fact
        case TrafficDrifted():
            learned["traffic_drifted"] = fact
        case ReleaseAccepted() | DeploymentReleased():
            pass
    if isinstance(fact, FingerprintMeasured):
        learned["fingerprints"], learned["calibrations"] = fact.fingerprints, fact.calibrations
    elif isinstance(fact, PlanComputed | PlanPreviewed | DeploymentRestored):
        learned["plan"] = fact.plan
        is_placed = not isinstance(fact, PlanPreviewed)
        if fact.plan.fleet is not None and fact.plan.fleet.is_shared and is_placed:
            learned["lanes"] = tuple(dict.fromkeys((*record.lanes, *fact.plan.fleet.gpu_types)))
    return record.model_copy(update=learned)


def replans(record: Record, fact: DeploymentFailed) -> bool:
    """Whether it only says that planning again found nothing: what was placed by an earlier plan goes on."""
    return fact.reason is FailureReason.NO_FEASIBLE_PLAN and bool(record.placements)


_STATES: dict[type[Fact], State] = {
    FingerprintMeasured: State.MEASURED,
    PlanComputed: State.PLANNED,
    PlanPreviewed: State.PLANNED,
    DeploymentRestored: State.PLANNED,
    DeploymentWaiting: State.WAITING,
    PlacementReserved: State.RESERVED,
    ReplicaReady: State.READY,
    ReleaseAccepted: State.DRAINING,
    DeploymentDraining: State.DRAINING,
    DeploymentReleased: State.RELEASED,
    DeploymentFailed: State.FAILED,
}


def _said(measuring: MeasurementProgressed) -> datetime:
    return measuring.told_at


def _told(waiting: DeploymentWaiting) -> tuple[int, datetime]:
    """Of two the one that was said later is greater."""
    return waiting.num_placed, waiting.told_at or waiting.since


def _with(tokens: tuple[str, ...], token: str) -> tuple[str, ...]:
    return tokens if token in tokens else (*tokens, token)
