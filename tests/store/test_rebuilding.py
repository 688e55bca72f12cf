"""Redis that restarts empty: what runs is held again before anything is placed there, and its records are remade."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.contracts import (
    ConfirmationRequested,
    DeploymentDraining,
    DeploymentReleased,
    InventoryChanged,
    PlacementConfirmed,
    PlacementReserved,
    ReleaseAccepted,
    ReplicaFailed,
)
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.record import Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from tests.store.allocators import Allocators, of_type, ready, report, stopped
from tests.store.test_reservations import holding
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    made = Allocators(redis_url)
    yield made
    await made.redis.aclose()


async def two_replicas(allocators: Allocators) -> list[PlacementReserved]:
    """One on a, one on b; each has room for one more."""
    for name in ("a", "b"):
        await allocators.tell(report(name, 80))
    orders = of_type(PlacementReserved, await allocators.tell(computed(candidate(), replicas=2)))
    assert sorted(order.node for order in orders) == ["a", "b"]
    return sorted(orders, key=lambda order: order.node)


def confirmed(order: PlacementReserved) -> PlacementConfirmed:
    return PlacementConfirmed(deployment_id=order.deployment_id, placement=order.placement)


async def test_what_runs_is_held_as_soon_as_its_node_is_known(allocators: Allocators) -> None:
    on_a, _ = await two_replicas(allocators)
    await allocators.redis.flushall()
    answer = await allocators.tell(report("a", 80, running=[on_a]))
    assert await allocators.held() == {"a/0": 80}
    (asked,) = of_type(ConfirmationRequested, answer)
    assert (asked.node, asked.tokens) == ("a", (on_a.placement.token,))
    (changed,) = of_type(InventoryChanged, answer)
    assert changed.gpus[0].free_bytes == 0
    other = computed(deployment_id=uuid4(), max_wait_s=0)
    assert of_type(PlacementReserved, await allocators.tell(other)) == []


async def test_both_replicas_are_taken_back_and_the_deployment_ends_as_any_other(allocators: Allocators) -> None:
    orders = await two_replicas(allocators)
    await allocators.redis.flushall()
    for order in orders:
        await allocators.tell(report(order.node, 80, running=[order]))
        answer = await allocators.tell(confirmed(order))
        assert of_type(PlacementReserved, answer) == [order]
        assert of_type(PlacementReserved, await allocators.tell(confirmed(order))) == [order]
        await allocators.tell(ready(order))
        again = await allocators.tell(report(order.node, 80, running=[order], number=2))
        assert of_type(ConfirmationRequested, again) == []
        assert of_type(DeploymentDraining, again) == []
    assert await allocators.held() == {"a/0": 80, "b/0": 80}
    drains = of_type(DeploymentDraining, await allocators.tell(ReleaseAccepted(deployment_id=DEPLOYMENT)))
    ends = [await allocators.tell(stopped(drain)) for drain in drains]
    assert len(drains) == 2
    assert len(of_type(DeploymentReleased, ends[1])) == 1
    assert await allocators.held() == {}


async def test_a_replica_that_was_taken_back_and_dies_is_placed_again_under_a_token_never_used(
    allocators: Allocators,
) -> None:
    on_a, _ = await two_replicas(allocators)
    await allocators.redis.flushall()
    await allocators.tell(report("a", 80, running=[on_a]))
    await allocators.tell(confirmed(on_a))
    await allocators.tell(ready(on_a))
    at = on_a.placement
    died = ReplicaFailed(deployment_id=DEPLOYMENT, replica=at.replica, token=at.token, node="a", detail="died")
    (again,) = of_type(PlacementReserved, await allocators.tell(died))
    assert again.placement.candidate == at.candidate
    assert int(again.placement.token.rpartition(".")[2]) > 10**9


async def test_what_was_released_while_its_record_was_lost_is_told_to_stop(allocators: Allocators) -> None:
    on_a, _ = await two_replicas(allocators)
    await allocators.redis.flushall()
    await allocators.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    answer = await allocators.tell(report("a", 80, running=[on_a]))
    (drain,) = of_type(DeploymentDraining, answer)
    assert drain.token == on_a.placement.token
    assert await allocators.held() == {"a/0": 80}
    await allocators.tell(stopped(drain))
    await allocators.tell(report("a", 80, number=2))
    assert await allocators.held() == {}


async def test_what_ended_before_it_was_confirmed_holds_nothing(allocators: Allocators) -> None:
    on_a, _ = await two_replicas(allocators)
    await allocators.redis.flushall()
    await allocators.tell(report("a", 80, running=[on_a]))
    await allocators.tell(report("a", 80, number=2))
    assert await allocators.held() == {}
    await allocators.tell(confirmed(on_a))
    assert await allocators.held() == {}


async def test_a_choice_from_before_the_restart_is_refused(allocators: Allocators) -> None:
    inventory, reservations = Inventory(allocators.redis), Reservations(allocators.redis)
    await allocators.tell(report("a", 80))
    seen = await inventory.snapshot()
    await allocators.redis.flushall()
    record, blank = holding(uuid4(), ("a", {"a/0": 40})), Loaded(0, Record(deployment_id=uuid4()))
    assert await reservations.commit(blank, record) is Outcome.TAKEN  # the node has not reported since
    await allocators.tell(report("a", 80))
    assert await reservations.commit(blank, record, seen=seen) is Outcome.MOVED
    assert await reservations.commit(blank, record, seen=await inventory.snapshot()) is Outcome.DONE


async def test_what_comes_to_run_on_bytes_promised_to_others_is_told_to_stop_and_none_are_promised_twice(
    allocators: Allocators,
) -> None:
    on_a, _ = await two_replicas(allocators)
    await allocators.redis.flushall()
    await allocators.tell(report("a", 80))  # its order is still under way
    (other,) = of_type(PlacementReserved, await allocators.tell(computed(deployment_id=UUID(int=5))))
    await allocators.tell(report("a", 80, running=[on_a], number=2))
    assert await allocators.held() == {"a/0": 80}
    (drain,) = of_type(DeploymentDraining, await allocators.tell(confirmed(on_a)))
    assert (drain.token, other.node) == (on_a.placement.token, "a")
