"""What a deployment holds after each fact, whichever comes twice or late."""

from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    Failure,
    FailureReason,
    PlacementReserved,
)
from maveriq_allocator import lifecycle
from maveriq_allocator.adopting import adopted, is_over
from maveriq_allocator.choosing import choose
from maveriq_allocator.lifecycle import MAX_STRAYS
from maveriq_allocator.record import Phase, Record, Stray
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed, node

PLAN = computed(candidate(pp=1), candidate(pp=2), replicas=2)
BLANK = Record(deployment_id=DEPLOYMENT)
FAILURE = Failure(reason=FailureReason.ENGINE_FAILED, detail="it died")


def two_replicas() -> Record:
    choice = choose(PLAN.plan, [node("a", 100), node("b", 100)], num_replicas=2)
    assert choice is not None
    return lifecycle.placed(BLANK, PLAN, choice)


def tokens(record: Record) -> list[str]:
    return [held.placement.token for held in record.held]


def stray(record: Record, number: int) -> Stray:
    at = record.held[number].placement
    return Stray(node=at.node, replica=at.replica, token=at.token)


def test_every_seat_gets_a_token_of_its_own_and_an_order_to_its_node() -> None:
    record = two_replicas()
    orders = lifecycle.orders(record)
    assert len(set(tokens(record))) == 2
    assert [(o.node, o.placement.replica) for o in orders if isinstance(o, PlacementReserved)] == [("a", 0), ("b", 1)]


def test_a_token_is_never_used_again() -> None:
    record = two_replicas()
    choice = choose(PLAN.plan, [node("a", 50, 50)], num_replicas=1, start=1)
    assert choice is not None
    moved = lifecycle.moved(record, PLAN, record.held[0], choice)
    assert len({*tokens(record), *tokens(moved)}) == 3
    assert {held.placement.replica: held.rank for held in moved.held} == {0: 1, 1: 0}


def test_a_released_deployment_drains_what_it_holds_and_ends_with_the_last_replica() -> None:
    record = lifecycle.released(two_replicas())
    assert all(isinstance(order, DeploymentDraining) for order in lifecycle.orders(record))
    first, second = tokens(record)
    assert lifecycle.release_done(lifecycle.stopped(record, first)) == []
    ended = lifecycle.stopped(lifecycle.stopped(record, first), second)
    assert lifecycle.release_done(ended) == [DeploymentReleased(deployment_id=DEPLOYMENT)]


def test_a_deployment_without_replicas_is_released_at_once_and_remembers_it() -> None:
    record = lifecycle.released(BLANK)
    assert record.ended
    assert lifecycle.release_done(record) == [DeploymentReleased(deployment_id=DEPLOYMENT)]


def test_a_deployment_that_is_given_up_drains_its_other_replicas() -> None:
    record = two_replicas()
    record = lifecycle.failed(record, FAILURE, record.held[0])
    assert lifecycle.orders(record) == [
        lifecycle.drain(record, stray(record, 0)),
        lifecycle.drain(record, stray(two_replicas(), 0)),  # it failed, but might have been started again
    ]
    assert lifecycle.outlook(record) == [
        DeploymentFailed(deployment_id=DEPLOYMENT, reason=FailureReason.ENGINE_FAILED, detail="it died")
    ]


def test_ready_is_remembered_until_the_node_restarts() -> None:
    record = two_replicas()
    record = lifecycle.ready(record, tokens(record)[0])
    assert [held.phase for held in record.held] == [Phase.READY, Phase.RESERVED]
    assert lifecycle.ready(record, tokens(record)[0]) == record
    assert [held.phase for held in lifecycle.restarted(record, "a").held] == [Phase.RESERVED, Phase.RESERVED]
    assert lifecycle.restarted(record, "b") == record


def test_nothing_brings_a_draining_replica_back() -> None:
    record = lifecycle.released(two_replicas())
    assert lifecycle.ready(record, tokens(record)[0]) == record
    assert lifecycle.restarted(record, "a") == record


def test_a_replica_that_was_lost_and_may_run_is_stopped_with_its_deployment() -> None:
    ghost = stray(two_replicas(), 0)
    record = lifecycle.lost(two_replicas(), two_replicas().held[0])
    assert all(isinstance(order, PlacementReserved) for order in lifecycle.orders(record))
    closing = lifecycle.released(record)
    assert lifecycle.drain(closing, ghost) in lifecycle.orders(closing)
    assert lifecycle.drain(closing, ghost) not in lifecycle.orders(lifecycle.stopped(closing, ghost.token))
    assert lifecycle.restarted(record, ghost.node) == record


def test_what_is_remembered_of_lost_replicas_is_bounded() -> None:
    record = two_replicas()
    for _ in range(100):
        choice = choose(PLAN.plan, [node("a", 100)], num_replicas=1)
        assert choice is not None
        record = lifecycle.moved(record, PLAN, record.held[0], choice)
    assert len(record.strays) <= MAX_STRAYS + 1


def test_what_holds_nothing_or_drains_is_to_stop_and_what_may_be_taken_back_is_not() -> None:
    record = two_replicas()
    first = tokens(record)[0]
    assert not is_over(record, first, 0)
    assert is_over(lifecycle.lost(record, record.held[0]), first, 0)
    assert is_over(lifecycle.stopped(record, first), first, 0)
    assert is_over(lifecycle.released(record), first, 0)
    assert not is_over(BLANK, first, 0)
    remade = adopted(BLANK, record.held[1].placement, now_s=2_000_000_000)
    assert not is_over(remade, first, 0)
    assert is_over(remade, f"{DEPLOYMENT}.1.7", 1)


def test_an_unknown_deployment_leaves_no_record_behind() -> None:
    assert lifecycle.ready(BLANK, "old") == BLANK
    assert lifecycle.stopped(BLANK, "old") == BLANK
