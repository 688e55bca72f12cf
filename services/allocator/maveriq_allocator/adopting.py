"""Replicas that run and no record knows: taken back, or told to stop. Pure: a record and a replica in, a verdict out.

Redis that restarts empty loses every record, while what they were about runs on. A record that is made again goes on
numbering its tokens at the clock's seconds, so that none is ever issued twice, and that tells it from others: what runs
without being held by such a record is another replica of it, unless it was lost or stopped since.
"""

from uuid import UUID

from maveriq.contracts import Admission, Intent, Placement, Plan, PlanComputed
from maveriq_allocator.record import REPLANNED, Held, Phase, Record
from maveriq_allocator.waiting import all_of

FIRST_NUMBER = 1_000_000_000  # seconds since the epoch, in 2001; no deployment is placed so often


def is_known(record: Record, token: str) -> bool:
    return record.holding(token) is not None


def is_wanted(record: Record, token: str, replica: int) -> bool:
    """Whether it is to be taken back: nothing says that it was to end."""
    if not record.planned and record.closing is None:
        return True
    return (
        record.num_issued >= FIRST_NUMBER
        and record.closing is None
        and all(stray.token != token for stray in record.strays)
        and all(held.placement.replica != replica for held in record.held)
    )


def is_over(record: Record, token: str, replica: int) -> bool:
    """Whether it is to stop, should it run: it drains, or holds nothing and is not to be taken back."""
    held = record.holding(token)
    return held.phase is Phase.DRAINING if held is not None else not is_wanted(record, token, replica)


def adopted(record: Record, placement: Placement, now_s: int) -> Record:
    """With this replica, as it runs; its worker says next whether it is ready."""
    held = Held(placement=placement, rank=0 if record.is_lost else REPLANNED, phase=Phase.RESERVED)
    waiting = record.waiting
    if waiting is not None:
        waiting = waiting.without(placement.replica, all_of(placement.candidate))
    changes = {
        "planned": True, "remade": record.is_lost, "held": (*record.held, held), "waiting": waiting,
        "num_issued": max(record.num_issued, now_s, FIRST_NUMBER),
    }  # fmt: skip
    return record.model_copy(update=changes)


def plan_of(deployment_id: UUID, placement: Placement) -> PlanComputed | None:
    """What is known of its plan: the one candidate; None: not even the model's shape."""
    if placement.facts is None:
        return None
    intent = Intent(model=placement.model.name, tenant=placement.tenant)
    return PlanComputed(
        deployment_id=deployment_id,
        admission=Admission(intent=intent, model=placement.model),
        plan=Plan(facts=placement.facts, candidates=(placement.candidate,), num_considered=1),
    )
