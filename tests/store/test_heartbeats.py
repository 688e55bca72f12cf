"""A reservation lives as long as its worker is heard: reclaimed once when it is not, and a late worker is stopped."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from maveriq.bus import Rejected
from maveriq.bus.handling import reply_id
from maveriq.contracts import (
    ConfirmationRequested,
    DeploymentDraining,
    InventoryChanged,
    NodeStarted,
    PlacementReserved,
    ReplicaLost,
    SweepDue,
)
from maveriq_allocator import keys
from maveriq_allocator.sweeping import FORGET_S
from tests.store.allocators import GRACE_S, Allocators, of_type, ready, report, stopped
from tests.unit.allocator.plans import candidate, computed


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    made = Allocators(redis_url)
    yield made
    await made.redis.aclose()


async def placed(allocators: Allocators) -> PlacementReserved:
    """On a, the one node that has just room; then b comes too."""
    await allocators.tell(report("a", 80))
    (order,) = of_type(PlacementReserved, await allocators.tell(computed(candidate(), candidate(pp=2))))
    await allocators.tell(ready(order))
    await allocators.tell(report("a", 80, running=[order], number=2))
    return order


async def test_a_silent_workers_reservation_is_lost_once_and_placed_again_with_its_candidate(
    allocators: Allocators,
) -> None:
    order = await placed(allocators)
    await allocators.listen(GRACE_S + 6)
    await allocators.tell(report("b", 80))
    (lost,) = of_type(ReplicaLost, await allocators.everyone(SweepDue()))
    assert (lost.token, lost.node) == (order.placement.token, "a")
    assert "did not report for 60 s" in lost.detail
    (again,) = of_type(PlacementReserved, await allocators.tell(lost))
    assert again.node == "b"
    assert again.placement.candidate == order.placement.candidate
    assert again.placement.token != order.placement.token
    assert await allocators.held() == {"b/0": 80}
    assert of_type(PlacementReserved, await allocators.tell(lost)) == [again]
    assert await allocators.held() == {"b/0": 80}
    assert of_type(ReplicaLost, await allocators.everyone(SweepDue())) == []
    assert await allocators.everyone(SweepDue()) == []


async def test_a_loss_is_told_by_one_sweep_however_late_it_is_handled_and_again_by_the_same_if_that_died(
    allocators: Allocators,
) -> None:
    """A busy fleet needs longer than any sweep for the losses of a node: none of the next ones tells them again."""
    order = await placed(allocators)
    await allocators.listen(GRACE_S + 6)
    sweep = SweepDue(mark=uuid4())
    (lost,) = of_type(ReplicaLost, await allocators.tell(sweep))
    assert await allocators.redis.ttl(keys.said(order.placement.token, "lost")) > GRACE_S
    assert of_type(ReplicaLost, await allocators.tell(SweepDue(mark=uuid4()))) == []
    assert of_type(ReplicaLost, await allocators.tell(SweepDue())) == []
    (again,) = of_type(ReplicaLost, await allocators.tell(sweep))
    assert again == lost
    await allocators.tell(lost)
    assert of_type(ReplicaLost, await allocators.tell(sweep)) == []


async def test_a_lost_gpu_is_told_by_one_report_and_again_by_the_same_if_that_died(allocators: Allocators) -> None:
    await allocators.tell(report("a", 80, 80))
    (order,) = of_type(PlacementReserved, await allocators.tell(computed(candidate())))
    there = "a/1" if order.placement.stages[0].gpus == ("a/0",) else "a/0"
    left = report("a", 80, 80, number=2)
    left = left.model_copy(update={"gpus": tuple(gpu for gpu in left.gpus if gpu.id == there)})
    (lost,) = of_type(ReplicaLost, await allocators.tell(left))
    assert of_type(ReplicaLost, await allocators.tell(left)) == [lost]
    for number in (3, None):
        assert of_type(ReplicaLost, await allocators.tell(left.model_copy(update={"number": number}))) == []


def test_a_loss_has_one_message_id_whoever_tells_it() -> None:
    loss = ReplicaLost(deployment_id=uuid4(), replica=0, token="t.0.0", node="a", detail="silent")
    same = loss.model_copy(update={"detail": "GPU gone"})
    assert reply_id(uuid4(), loss, 0) == reply_id(uuid4(), same, 7)
    assert reply_id(uuid4(), loss, 0) != reply_id(uuid4(), loss.model_copy(update={"token": "t.0.1"}), 0)


async def test_a_node_that_fell_silent_is_told_so_with_what_is_held_there_to_the_last(allocators: Allocators) -> None:
    """No report tells it: what two allocators said of its losses may be heard in any order."""
    order = await placed(allocators)
    await allocators.listen(GRACE_S + 6)
    first = await allocators.tell(SweepDue())
    (lost,), (changed,) = of_type(ReplicaLost, first), of_type(InventoryChanged, first)
    assert (changed.node, changed.silent, [len(state.holdings) for state in changed.gpus]) == ("a", True, [1])
    await allocators.tell(lost)
    (changed,) = of_type(InventoryChanged, await allocators.tell(SweepDue()))
    assert (changed.node, changed.silent, [len(state.holdings) for state in changed.gpus]) == ("a", True, [0])
    assert await allocators.tell(SweepDue()) == []
    (changed,) = of_type(InventoryChanged, await allocators.tell(report("a", 80, running=[order], number=3)))
    assert not changed.silent


async def test_what_came_to_a_silent_node_after_all_was_told_is_told_too(allocators: Allocators) -> None:
    """It was chosen before the node fell silent, and a worker died over its first report."""
    order = await placed(allocators)
    await allocators.tell(report("b", 80))
    await allocators.tell(report("a", 80, running=[order], number=3))
    await allocators.listen(GRACE_S + 6)
    await allocators.tell(SweepDue())
    (still,) = of_type(InventoryChanged, await allocators.tell(SweepDue()))  # b holds nothing
    assert still.node == "a"
    field = keys.holding("b/0", order.placement.token)
    await allocators.redis.hset(keys.held("b"), field, 80)
    assert [change.node for change in of_type(InventoryChanged, await allocators.tell(SweepDue()))] == ["a", "b"]


async def test_a_node_that_was_silent_for_a_day_is_forgotten_once_nothing_is_held_there(
    allocators: Allocators,
) -> None:
    order = await placed(allocators)
    await allocators.tell(report("gone", 10))
    await allocators.listen(FORGET_S - 1)
    await allocators.tell(report("b", 80))
    (lost,) = of_type(ReplicaLost, await allocators.tell(SweepDue()))
    assert lost.token == order.placement.token
    assert await allocators.redis.hkeys(keys.CHANGES) == ["a", "gone", "b"]
    await allocators.listen(2)
    await allocators.tell(SweepDue())
    assert await allocators.redis.hkeys(keys.CHANGES) == ["a", "b"]
    assert [key async for key in allocators.redis.scan_iter("*gone*")] == []
    await allocators.tell(lost)
    await allocators.tell(SweepDue())
    assert await allocators.redis.hkeys(keys.CHANGES) == ["b"]
    (changed,) = of_type(InventoryChanged, await allocators.tell(report("gone", 20)))
    assert (changed.silent, changed.gpus[0].free_bytes) == (False, 20)


async def test_within_the_grace_period_nothing_is_lost(allocators: Allocators) -> None:
    await placed(allocators)
    await allocators.listen(GRACE_S - 1)
    assert await allocators.everyone(SweepDue()) == []


async def test_an_outage_of_our_own_is_nobodys_silence(allocators: Allocators) -> None:
    await placed(allocators)
    await allocators.listen(0)
    await allocators.redis.hincrby(keys.WATCH, "ticked_at_ms", -3_600_000)  # no allocator, broker or Redis for an hour
    for _ in range(3):
        assert await allocators.everyone(SweepDue()) == []
    (changed,) = of_type(InventoryChanged, await allocators.tell(report("b", 80)))
    assert changed.node == "b"
    assert of_type(ReplicaLost, await allocators.everyone(SweepDue())) == []


async def test_a_silent_node_is_not_offered_and_offered_again_when_it_is_heard(allocators: Allocators) -> None:
    await allocators.tell(report("a", 80))
    await allocators.listen(GRACE_S + 6)
    assert of_type(PlacementReserved, await allocators.tell(computed(max_wait_s=0))) == []
    await allocators.tell(report("a", 80, number=2))
    other = computed(deployment_id=computed().deployment_id.__class__(int=9))
    assert len(of_type(PlacementReserved, await allocators.tell(other))) == 1


async def test_a_worker_that_comes_back_late_is_told_to_stop_and_its_bytes_are_kept_until_it_has(
    allocators: Allocators,
) -> None:
    order = await placed(allocators)
    await allocators.listen(GRACE_S + 6)
    await allocators.tell(report("b", 80))
    (lost,) = of_type(ReplicaLost, await allocators.tell(SweepDue()))
    await allocators.tell(lost)
    late = await allocators.tell(report("a", 80, running=[order], number=3))
    (drain,) = of_type(DeploymentDraining, late)
    assert (drain.node, drain.token, drain.goes_on) == ("a", order.placement.token, True)
    assert of_type(ConfirmationRequested, late) == []
    assert await allocators.held() == {"a/0": 80, "b/0": 80}
    assert of_type(DeploymentDraining, await allocators.tell(report("a", 80, running=[order], number=4))) == []
    await allocators.tell(stopped(drain))
    await allocators.tell(report("a", 80, number=5))
    assert await allocators.held() == {"b/0": 80}


async def test_a_report_that_was_overtaken_counts_no_more(allocators: Allocators) -> None:
    order = await placed(allocators)
    await allocators.tell(report("b", 80, number=7))
    await allocators.tell(report("b", 80, running=[order], number=6))
    assert await allocators.held() == {"a/0": 80}


async def test_a_worker_that_came_up_anew_numbers_its_reports_anew(allocators: Allocators) -> None:
    await allocators.tell(report("a", 80, number=1000))
    await allocators.tell(NodeStarted(node="a"))
    (changed,) = of_type(InventoryChanged, await allocators.tell(report("a", 90, number=1)))
    assert changed.gpus[0].gpu.total_bytes == 90


async def test_what_reports_leave_out_for_the_grace_period_is_ordered_again(allocators: Allocators) -> None:
    order = await placed(allocators)
    assert of_type(PlacementReserved, await allocators.tell(report("a", 80, number=3))) == []
    await allocators.listen(GRACE_S + 1)
    assert of_type(PlacementReserved, await allocators.tell(report("a", 80, number=4))) == [order]
    assert of_type(PlacementReserved, await allocators.tell(report("a", 80, number=5))) == []


async def test_a_worker_that_says_nothing_of_what_runs_is_believed_to_run_it(allocators: Allocators) -> None:
    await placed(allocators)
    untold = report("a", 80, number=3).model_copy(update={"running": None})
    await allocators.tell(untold)
    await allocators.listen(GRACE_S + 1)
    assert of_type(PlacementReserved, await allocators.tell(untold.model_copy(update={"number": 4}))) == []
    assert await allocators.held() == {"a/0": 80}


@pytest.mark.parametrize("token", ["token-1", "6f1f0a4e-7f6b-4d51-9a0c-0d2b6f0b7a10.1.0"], ids=["odd", "another's"])
async def test_a_token_that_no_allocator_gave_out_is_refused_and_keeps_nothing(
    allocators: Allocators, token: str
) -> None:
    order = await placed(allocators)
    odd = order.placement.model_copy(update={"token": token})
    with pytest.raises(Rejected, match=r"running\.0\.token: .* is no token of replica 0"):
        await allocators.tell(report("b", 80, running=[order.model_copy(update={"placement": odd})]))
    assert await allocators.held() == {"a/0": 80}
