"""Facts may come twice and in any order: the record ends the same."""

from datetime import timedelta
from itertools import permutations
from uuid import UUID, uuid4

from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    DeploymentWaiting,
    FailureReason,
    FingerprintMeasured,
    Intent,
    IntentAccepted,
    MeasurementProgressed,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaLost,
    ReplicaReady,
    State,
)
from maveriq_ingress.folding import Fact, Record, fold
from tests.fakes import ADMISSION, FACTS, FINGERPRINT, NOW, PLAN, placement
from tests.fleets import FLEET_PLAN, LARGE, SMALL, routed

ID = uuid4()


def accepted(deployment_id: UUID = ID) -> IntentAccepted:
    return IntentAccepted(deployment_id=deployment_id, admission=ADMISSION)


MEASURED = FingerprintMeasured(deployment_id=ID, admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,))
PLANNED = PlanComputed(deployment_id=ID, admission=ADMISSION, plan=PLAN)


def reserved(replica: int, token: str) -> PlacementReserved:
    return PlacementReserved(deployment_id=ID, node="n1", placement=placement(replica, token))


def ready(replica: int, token: str) -> ReplicaReady:
    return ReplicaReady(deployment_id=ID, replica=replica, token=token, node="n1", load_s=1.0)


def lost(replica: int, token: str) -> ReplicaFailed:
    return ReplicaFailed(deployment_id=ID, replica=replica, token=token, node="n1", detail="died")


def known(*facts: Fact) -> Record:
    record = None
    for fact in facts:
        record = fold(record, fact, NOW)
    assert record is not None
    return record


def test_of_what_is_said_to_be_measured_the_later_counts_until_it_is() -> None:
    first, last = (
        MeasurementProgressed(deployment_id=ID, detail=f"{n} of 2", told_at=NOW + timedelta(seconds=n)) for n in (1, 2)
    )
    for facts in permutations((accepted(), first, last)):
        told = known(*facts).deployment()
        assert told is not None and (told.state, told.measuring) == (State.ACCEPTED, "2 of 2")
    after = known(accepted(), MEASURED, last).deployment()
    assert after is not None and after.measuring is None


def test_each_fact_moves_the_state_to_its_own() -> None:
    ends = {
        State.ACCEPTED: accepted(),
        State.MEASURED: MEASURED,
        State.PLANNED: PLANNED,
        State.RESERVED: reserved(0, "a"),
        State.READY: ready(0, "a"),
        State.DRAINING: ReleaseAccepted(deployment_id=ID),
        State.RELEASED: DeploymentReleased(deployment_id=ID),
    }
    record = None
    for state, fact in ends.items():
        record = fold(record, fact, NOW)
        assert record.state is state


def test_the_order_of_facts_does_not_matter() -> None:
    facts: tuple[Fact, ...] = (accepted(), MEASURED, reserved(0, "a"), lost(0, "a"), reserved(0, "b"), ready(0, "b"))
    for order in permutations(facts):
        seen = known(*order).deployment()
        assert seen is not None
        assert seen.state is State.READY
        assert seen.ready_replicas == (0,)
        assert [one.token for one in seen.placements] == ["b"]
        assert seen.fingerprints == (FINGERPRINT,)


def test_a_fact_heard_twice_changes_nothing_and_not_the_time_of_change() -> None:
    for fact in (accepted(), MEASURED, PLANNED, reserved(0, "a"), ready(0, "a"), lost(0, "a")):
        once = known(accepted(), fact)
        assert fold(once, fact, NOW + timedelta(hours=1)) is once


def test_each_change_is_later_than_the_one_before_even_when_the_clock_stands_still() -> None:
    first = known(accepted())
    second = fold(first, MEASURED, NOW)
    third = fold(second, PLANNED, NOW - timedelta(days=1))
    assert first.changed_at < second.changed_at < third.changed_at


def test_a_fact_before_the_intent_is_kept_but_not_shown() -> None:
    early = known(ready(0, "a"))
    assert early.deployment() is None
    shown = fold(early, accepted(), NOW).deployment()
    assert shown is not None
    assert shown.state is State.READY


def test_where_the_intent_is_lost_what_runs_is_shown_with_as_much_of_it_as_its_placements_tell() -> None:
    """Redis came back empty, and workers confirm what they run."""
    record = known(ready(0, "a"), reserved(0, "a"))
    shown = record.deployment()
    assert shown is not None
    assert (shown.state, shown.ready_replicas) == (State.READY, (0,))
    assert shown.intent == Intent(model=placement(0, "a").model.name)
    again = fold(record, accepted(), NOW).deployment()
    assert again is not None
    assert again.intent == ADMISSION.intent


def test_a_lost_record_is_rebuilt_from_a_fact_that_carries_the_admission() -> None:
    shown = known(PLANNED).deployment()
    assert shown is not None
    assert shown.intent == ADMISSION.intent


def test_a_failed_replica_is_not_ready_until_its_next_placement_is() -> None:
    record = known(accepted(), reserved(0, "a"), ready(0, "a"), reserved(1, "c"), ready(1, "c"), lost(0, "a"))
    shown = record.deployment()
    assert shown is not None
    assert shown.ready_replicas == (1,)
    again = fold(fold(record, reserved(0, "b"), NOW), ready(0, "b"), NOW).deployment()
    assert again is not None
    assert again.ready_replicas == (0, 1)


def test_of_engines_that_failed_the_one_placed_last_is_shown_in_whatever_order_that_is_heard() -> None:
    first, second = reserved(0, "t0"), reserved(0, "t1")
    second = second.model_copy(update={"placement": second.placement.model_copy(update={"number": 1})})
    for facts in permutations((lost(0, "t0"), lost(0, "t1"), lost(0, "t0"))):
        shown = known(accepted(), PLANNED, first, second, *facts).deployment()
        assert shown is not None and shown.replica_failed == lost(0, "t1")


def test_a_draining_replica_is_not_ready() -> None:
    draining = DeploymentDraining(deployment_id=ID, node="n1", replica=0, token="a")
    shown = known(accepted(), reserved(0, "a"), ready(0, "a"), draining).deployment()
    assert shown is not None
    assert (shown.state, shown.ready_replicas) == (State.DRAINING, ())


def test_a_failure_keeps_its_first_reason() -> None:
    first = DeploymentFailed(deployment_id=ID, reason=FailureReason.NO_CAPACITY, detail="full")
    second = DeploymentFailed(deployment_id=ID, reason=FailureReason.ENGINE_FAILED, detail="later")
    shown = known(accepted(), first, second).deployment()
    assert shown is not None
    assert shown.failure is not None
    assert shown.failure.reason is FailureReason.NO_CAPACITY


def test_a_dry_run_ends_with_its_plan() -> None:
    dry = ADMISSION.model_copy(update={"dry_run": True})
    record = known(IntentAccepted(deployment_id=ID, admission=dry))
    assert not record.ended
    assert fold(record, PlanPreviewed(deployment_id=ID, admission=dry, plan=PLAN), NOW).ended
    assert not known(accepted(), PLANNED).ended


def waits(num_placed: int = 0, detail: str = "20 B missing", told_s: int = 0) -> DeploymentWaiting:
    told_at = NOW + timedelta(seconds=told_s)
    return DeploymentWaiting(
        deployment_id=ID, detail=detail, since=NOW, num_missing=1, num_placed=num_placed, told_at=told_at
    )


def numbered(replica: int, token: str, number: int) -> PlacementReserved:
    at = placement(replica, token).model_copy(update={"number": number})
    return PlacementReserved(deployment_id=ID, node="n1", placement=at)


def test_a_deployment_waits_until_it_is_placed_in_whatever_order_that_is_heard() -> None:
    for order in permutations((accepted(), PLANNED, waits(), waits(detail="10 B missing", told_s=9))):
        shown = known(*order).deployment()
        assert shown is not None
        assert (shown.state, shown.waiting) == (State.WAITING, "10 B missing")
    for order in permutations((accepted(), PLANNED, waits(), numbered(0, "a", 0))):
        shown = known(*order).deployment()
        assert shown is not None
        assert (shown.state, shown.waiting) == (State.RESERVED, None)


def test_one_that_lost_a_replica_serves_on_and_says_what_it_waits_for() -> None:
    gone = ReplicaLost(deployment_id=ID, replica=1, token="b", node="n1", detail="silent")
    facts = (accepted(), numbered(0, "a", 0), ready(0, "a"), numbered(1, "b", 1), ready(1, "b"), gone, waits(2))
    shown = known(*facts).deployment()
    assert shown is not None
    assert (shown.state, shown.ready_replicas, shown.waiting) == (State.READY, (0,), "20 B missing")
    again = known(*facts, numbered(1, "c", 2)).deployment()
    assert again is not None and again.waiting is None


def test_nothing_is_waited_for_once_it_is_released() -> None:
    shown = known(accepted(), PLANNED, waits(), ReleaseAccepted(deployment_id=ID)).deployment()
    assert shown is not None and shown.waiting is None


def test_a_replica_that_moved_away_is_no_longer_shown_and_its_deployment_goes_on() -> None:
    left = DeploymentDraining(deployment_id=ID, node="n1", replica=0, token="a", goes_on=True)
    facts: tuple[Fact, ...] = (accepted(), numbered(0, "a", 0), ready(0, "a"), numbered(1, "b", 1), ready(1, "b"), left)
    for order in permutations(facts):
        shown = known(*order).deployment()
        assert shown is not None
        assert (shown.state, shown.ready_replicas) == (State.READY, (1,))
        assert [one.token for one in shown.placements] == ["b"]


def test_routes_lead_to_the_types_whose_replicas_serve_in_whatever_order_it_is_heard() -> None:
    planned = PlanComputed(deployment_id=ID, admission=ADMISSION, plan=FLEET_PLAN)
    placed = PlacementReserved(deployment_id=ID, node="n1", placement=routed(SMALL, 0, "a"))
    unrouted = PlacementReserved(deployment_id=ID, node="n1", placement=placement(1, "b"))
    facts: tuple[Fact, ...] = (accepted(), planned, placed, ready(0, "a"), unrouted, ready(1, "b"))
    for order in permutations(facts):
        record = known(*order)
        seen = record.deployment()
        assert seen is not None
        assert [[served.gpu_type for served in one.served_by] for one in seen.routes] == [[SMALL], [SMALL]]
        assert record.lanes == (SMALL, LARGE)


def test_a_preview_has_no_lanes_nor_has_a_fleet_of_one_type() -> None:
    assert FLEET_PLAN.fleet is not None
    alone = FLEET_PLAN.model_copy(
        update={"fleet": FLEET_PLAN.fleet.model_copy(update={"parts": FLEET_PLAN.fleet.parts[:1]})}
    )
    assert known(accepted(), PlanComputed(deployment_id=ID, admission=ADMISSION, plan=alone)).lanes == ()
    assert known(accepted(), PlanPreviewed(deployment_id=ID, admission=ADMISSION, plan=FLEET_PLAN)).lanes == ()
