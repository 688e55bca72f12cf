"""Copies of deployments' records. Pure: a record and its plan in, the copy out; a copy in, the record made again out.

Redis may be emptied, and with it every record is gone. What runs says so itself (`adopting`); all else is in copies on
the broker (`DeploymentKept`), each of which comes round once a minute: it is compared with its record, made anew and
sent on. A record made again says which replicas it wants, and places none of them before workers had the time to say
which of them run.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from maveriq.contracts import DeploymentKept, KeptReplica, PlanComputed
from maveriq_allocator import moving
from maveriq_allocator.adopting import FIRST_NUMBER
from maveriq_allocator.parts import FLEET, part_of
from maveriq_allocator.record import REPLANNED, Held, Phase, Record
from maveriq_allocator.waiting import Missing, Waiting, all_of

_DETAIL = "its record was lost and made again; workers are asked what of it runs"


def copied(
    record: Record, plan: PlanComputed, since: datetime, mark: UUID, *, version: int = 0, rounds: int = 0
) -> DeploymentKept:
    """Args:
    since: where it does not wait, when it was placed, as far as that is known.
    """
    waiting = record.waiting
    return DeploymentKept(
        deployment_id=record.deployment_id,
        admission=plan.admission,
        plan=plan.plan,
        since=since if waiting is None else waiting.since,
        replicas=tuple(_replicas(record, plan)),
        version=version,
        rounds=rounds,
        mark=mark,
    )


def sent_on(copy: DeploymentKept, mark: UUID) -> DeploymentKept:
    """As it is."""
    return copy.model_copy(update={"rounds": copy.rounds + 1, "mark": mark})


def plan_in(copy: DeploymentKept) -> PlanComputed:
    return PlanComputed(deployment_id=copy.deployment_id, admission=copy.admission, plan=copy.plan)


def restored(record: Record, copy: DeploymentKept, now: datetime, ask_s: float) -> Record:
    """The record with all that the copy says.

    Args:
        record: empty, or made of what runs.
        ask_s: that workers are given to say what runs, before anything is placed.
    """
    held = tuple(each.model_copy(update={"rank": REPLANNED}) for each in record.held)
    wanted = tuple(Missing(replica=each.replica, rank=each.rank, part=each.part) for each in copy.replicas)
    waiting: Waiting | None = Waiting(
        since=copy.since, told_at=now, detail=_DETAIL, num_missing=len(wanted) or copy.plan.num_replicas,
        missing=wanted, asked_until=now + timedelta(seconds=ask_s),
    )  # fmt: skip
    for each in held:
        waiting = waiting and waiting.without(each.placement.replica, all_of(each.placement.candidate))
    number = max(record.num_issued, int(now.timestamp()), FIRST_NUMBER)
    return record.model_copy(
        update={"planned": True, "remade": False, "held": held, "waiting": waiting, "num_issued": number}
    )


def _replicas(record: Record, plan: PlanComputed) -> Iterator[KeptReplica]:
    """Those that are to be there: no copy of one that still serves, nor what drains."""
    for held in record.held:
        if held.phase is not Phase.DRAINING and moving.of_copy(record, held.placement.token) is None:
            yield KeptReplica(replica=held.placement.replica, rank=held.rank, part=_part(held, plan))
    for missing in record.waiting.missing if record.waiting is not None else ():
        yield KeptReplica(replica=missing.replica, rank=missing.rank, part=missing.part)


def _part(held: Held, plan: PlanComputed) -> str:
    is_part = bool(held.placement.lanes) or held.rank == FLEET
    return part_of(plan.plan, held.placement.candidate.configuration.gpu_type) if is_part else ""
