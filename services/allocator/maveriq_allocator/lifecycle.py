"""What a deployment holds and how that changes. Pure: a record and a fact in, the next record or messages out.

Replies are read from the record after the change, never composed on the way: a message that comes twice finds its
change made, and gets the same replies.
"""

from maveriq.contracts import (
    Candidate,
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    DeploymentWaiting,
    Failure,
    Message,
    Placement,
    PlacementReserved,
    PlanComputed,
    Precision,
)
from maveriq_allocator.choosing import Choice
from maveriq_allocator.parts import FLEET, lanes_in
from maveriq_allocator.record import REPLANNED, Closing, Held, Phase, Record, Stray
from maveriq_allocator.waiting import Missing, Waiting

MAX_STRAYS = 32  # remembered of a deployment: the node's next report tells of what runs without being held


def placed(record: Record, plan: PlanComputed, choice: Choice) -> Record:
    """All replicas get their seats."""
    record = record.model_copy(update={"planned": True, "waiting": None})
    for replica in range(len(choice.seats)):
        record = _seated(record, plan, replica, choice, replica)
    return record


def replanned(record: Record) -> Record:
    """There is a newer plan: what runs stays, and whatever is placed next begins with that plan's best."""
    held = tuple(held.model_copy(update={"rank": REPLANNED}) for held in record.held)
    waiting = record.waiting
    if waiting is not None:
        ranks = [FLEET if missing.part else 0 for missing in waiting.missing]
        missing = tuple(
            missing.model_copy(update={"rank": rank}) for missing, rank in zip(waiting.missing, ranks, strict=True)
        )
        waiting = waiting.model_copy(update={"missing": missing})
    return record.model_copy(update={"held": held, "waiting": waiting})


def moved(record: Record, plan: PlanComputed, old: Held, choice: Choice) -> Record:
    """One replica gets another seat."""
    is_routed = bool(old.placement.lanes)
    return _seated(lost(record, old), plan, old.placement.replica, choice, is_routed=is_routed)


def waits(record: Record, waiting: Waiting, gone: Held | None = None) -> Record:
    """What it lacks has no seat now; what it holds goes on."""
    if gone is not None:
        record = lost(record, gone)
    return record.model_copy(update={"waiting": waiting})


def seated(record: Record, plan: PlanComputed, missing: Missing, choice: Choice) -> Record:
    """One replica that waited gets a seat."""
    waiting = None if record.waiting is None else record.waiting.without(missing.replica)
    record = record.model_copy(update={"waiting": waiting})
    return _seated(record, plan, missing.replica, choice, is_routed=bool(missing.part))


def after_checkpoint(plan: PlanComputed, lost: Held, start: int) -> int:
    """The first rank from `start` on whose checkpoint is not the lost replica's; past the last where there is none."""
    checkpoint = _checkpoint(plan, lost.placement.candidate)
    candidates = plan.plan.candidates
    others = (rank for rank in range(start, len(candidates)) if _checkpoint(plan, candidates[rank]) != checkpoint)
    return next(others, len(candidates))


def _checkpoint(plan: PlanComputed, candidate: Candidate) -> tuple[str, frozenset[Precision]]:
    """What is read, and what it is made into."""
    model, configuration = plan.admission.model, candidate.configuration
    variant = model.variant(configuration.variant, configuration.precision)
    made = frozenset(precision for stage in candidate.stages for precision in stage.precisions)
    return (variant.source if variant else None) or model.source, made or frozenset({configuration.precision})


def _seated(
    record: Record, plan: PlanComputed, replica: int, choice: Choice, at: int = 0, *, is_routed: bool = False
) -> Record:
    """
    Args:
        at: of the seat in the choice.
        is_routed: the replica that it follows takes requests by their size.
    """
    seat, rank = choice.seats[at], choice.rank
    candidate = choice.parts[at] if choice.parts else plan.plan.candidates[rank]
    is_routed = is_routed or bool(choice.parts) or any(held.placement.lanes for held in record.held)
    placement = Placement(
        replica=replica,
        token=f"{record.deployment_id}.{replica}.{record.num_issued}",
        number=record.num_issued,
        node=seat.node,
        tenant=plan.admission.intent.tenant,
        model=plan.admission.model,
        facts=plan.plan.facts,
        candidate=candidate,
        stages=seat.stages,
        lanes=lanes_in(plan.plan, candidate, is_routed=is_routed),
        gap=seat.gap,
    )
    held = Held(placement=placement, rank=rank, phase=Phase.RESERVED)
    return record.model_copy(update={"held": (*record.held, held), "num_issued": record.num_issued + 1})


def failed(record: Record, failure: Failure, gone: Held | None = None) -> Record:
    """The deployment is given up: nothing more is tried, what still runs drains."""
    if gone is not None:
        record = lost(record, gone)
    changes = {"planned": True, "waiting": None, "closing": Closing.FAILED, "failure": failure}
    record = record.model_copy(update=changes)
    return _draining(record)


def released(record: Record) -> Record:
    """Its producer no longer needs it. A deployment that failed stays failed."""
    return _draining(record.model_copy(update={"waiting": None, "closing": record.closing or Closing.RELEASED}))


def _draining(record: Record) -> Record:
    held = tuple(held.model_copy(update={"phase": Phase.DRAINING}) for held in record.held)
    return record.model_copy(update={"held": held})


def ready(record: Record, token: str) -> Record:
    """A replica runs. One without a reservation changes nothing: it is told to stop, or taken back (`adopting`)."""
    held = record.holding(token)
    return record if held is None else _in_phase(record, held, Phase.READY)


def restarted(record: Record, node: str) -> Record:
    """The worker of `node` came up and runs nothing; strays stay known, for this may be heard late."""
    for held in record.held:
        if held.placement.node == node:
            record = _in_phase(record, held, Phase.RESERVED)
    return record


def stopped(record: Record, token: str) -> Record:
    """A replica no longer runs: its bytes are free."""
    held = record.holding(token)
    if held is not None:
        record = _without(record, held)
    return record.model_copy(update={"strays": tuple(s for s in record.strays if s.token != token)})


def _in_phase(record: Record, held: Held, phase: Phase) -> Record:
    if held.phase is Phase.DRAINING:  # and nothing brings it back
        return record
    changed = held.model_copy(update={"phase": phase})
    return record.model_copy(update={"held": tuple(changed if h is held else h for h in record.held)})


def lost(record: Record, gone: Held) -> Record:
    """It holds nothing any more; should it run after all, it is stopped with the rest, if no report tells before."""
    at = gone.placement
    stray = Stray(node=at.node, replica=at.replica, token=at.token)
    return _without(record, gone).model_copy(update={"strays": (*record.strays[-MAX_STRAYS:], stray)})


def _without(record: Record, gone: Held) -> Record:
    return record.model_copy(update={"held": tuple(held for held in record.held if held is not gone)})


def orders(record: Record, *, replica: int | None = None, node: str | None = None) -> list[Message]:
    """What workers are to do now, for one replica or node, or for all."""
    messages: list[Message] = []
    for held in sorted(record.held, key=lambda held: held.placement.replica):
        at = held.placement
        if replica in (None, at.replica) and node in (None, at.node):
            messages.append(
                drain(record, Stray(node=at.node, replica=at.replica, token=at.token))
                if held.phase is Phase.DRAINING
                else PlacementReserved(deployment_id=record.deployment_id, node=at.node, placement=at)
            )
    if record.closing is not None and replica is None:
        messages += [drain(record, stray) for stray in record.strays if node in (None, stray.node)]
    return messages


def starting(record: Record) -> list[Message]:
    """Orders for what is not known to serve yet."""
    reserved = (held.placement for held in record.held if held.phase is Phase.RESERVED)
    return [PlacementReserved(deployment_id=record.deployment_id, node=at.node, placement=at) for at in reserved]


def drain(record: Record, stray: Stray) -> DeploymentDraining:
    return DeploymentDraining(
        deployment_id=record.deployment_id, node=stray.node, replica=stray.replica, token=stray.token,
        goes_on=record.closing is None,
    )  # fmt: skip


def outlook(record: Record) -> list[Message]:
    """That the deployment waits, is given up, or gone; nothing while all of it lives or drains."""
    if record.waiting is not None:
        told = record.waiting
        return [
            DeploymentWaiting(
                deployment_id=record.deployment_id, detail=told.cause + told.detail, since=told.since,
                told_at=told.told_at, num_missing=told.num_missing, num_placed=record.num_issued,
            )
        ]  # fmt: skip
    if record.failure is not None:
        return [DeploymentFailed(deployment_id=record.deployment_id, **dict(record.failure))]
    return release_done(record)


def release_done(record: Record) -> list[Message]:
    return [DeploymentReleased(deployment_id=record.deployment_id)] if record.ended else []


def changed_nodes(record: Record, *others: str) -> list[str]:
    """The nodes whose inventory a change of this record may touch."""
    return sorted({node for held in record.held for node in held.placement.nodes} | set(others))
