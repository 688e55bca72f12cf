"""A plan's fleet as the allocator places it: all of it or none, each part on its own GPU type and again there first."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from maveriq.contracts import (
    Candidate,
    DeploymentFailed,
    DeploymentReleased,
    DeploymentWaiting,
    Lane,
    PlacementRequested,
    PlacementReserved,
    PlanComputed,
    PlannedFleet,
    ReleaseAccepted,
)
from tests.contract.test_allocator import Allocator, failed, of_type, place, ready, stopped
from tests.fleets import LARGE, ROUTES, SMALL
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed, reported


@pytest.fixture
async def allocator(redis_url: str) -> AsyncIterator[Allocator]:
    allocator = Allocator(redis_url)
    yield allocator
    await allocator.close()


def part(gpu_type: str, replicas: int) -> Candidate:
    return candidate(gpu_type=gpu_type).model_copy(update={"replicas": replicas})


def fleet_plan(*others: Candidate) -> PlanComputed:
    """Two replicas of 80 bytes on the small type, one on the large; else the others, or two on the large."""
    plain = computed(*(others or (candidate(gpu_type=LARGE),)), replicas=2)
    fleet = PlannedFleet(parts=(part(SMALL, 2), part(LARGE, 1)), routes=ROUTES, score=2, bound=2, single_score=3)
    return plain.model_copy(update={"plan": plain.plan.model_copy(update={"fleet": fleet})})


def only_fleet() -> PlanComputed:
    """No candidate serves all sizes."""
    plan = fleet_plan()
    return plan.model_copy(update={"plan": plan.plan.model_copy(update={"candidates": ()})})


def types(orders: list[PlacementReserved]) -> list[str]:
    return sorted(order.placement.candidate.configuration.gpu_type for order in orders)


async def test_each_part_is_seated_on_its_own_type_and_told_whose_requests_it_takes(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    assert types(orders) == [LARGE, SMALL, SMALL]
    assert sorted(order.placement.replica for order in orders) == [0, 1, 2]
    for order in orders:
        own = order.placement.candidate.configuration.gpu_type
        (other,) = {SMALL, LARGE} - {own}
        assert order.node == ("s" if own == SMALL else "l")
        assert order.placement.lanes == (Lane(gpu_type=own), Lane(gpu_type=other, rank=1))


async def test_the_same_plan_twice_is_placed_once(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    assert await place(allocator, fleet_plan()) == await place(allocator, fleet_plan())


async def test_where_a_part_has_no_room_a_candidate_of_one_type_is_placed_unrouted(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    assert types(orders) == [LARGE, LARGE]
    assert all(order.placement.lanes == () for order in orders)


async def test_a_fleet_that_waited_is_placed_whole_once_there_is_room(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 80, gpu_type=LARGE))
    before = computed(candidate(gpu_type=SMALL), replicas=2, deployment_id=UUID(int=7))
    orders = await place(allocator, before)
    plan = fleet_plan(candidate(gpu_type=SMALL), candidate(gpu_type=LARGE))
    assert of_type(DeploymentWaiting, await allocator.tell(plan))
    await allocator.tell(ReleaseAccepted(deployment_id=before.deployment_id))
    for order in orders:
        await allocator.tell(stopped(order))
    told = of_type(PlacementReserved, await allocator.tell(PlacementRequested(deployment_id=DEPLOYMENT)))
    assert types(told) == [LARGE, SMALL, SMALL]


async def test_a_replica_that_dies_while_it_serves_is_seated_as_its_own_part_again(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 400, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    lost = next(order for order in orders if order.node == "s")
    for order in orders:
        await allocator.tell(ready(order))
    again = of_type(PlacementReserved, await allocator.tell(failed(lost, "died")))
    (new,) = [order for order in again if order.placement.replica == lost.placement.replica]
    assert new.placement.token != lost.placement.token
    assert (new.placement.candidate, new.placement.lanes) == (lost.placement.candidate, lost.placement.lanes)


async def test_one_that_does_not_start_goes_on_as_a_candidate_which_takes_requests_by_size_too(
    allocator: Allocator,
) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 400, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    lost = next(order for order in orders if order.node == "s")
    again = of_type(PlacementReserved, await allocator.tell(failed(lost)))
    (new,) = [order for order in again if order.placement.replica == lost.placement.replica]
    assert new.node == "l"
    assert new.placement.lanes[0] == Lane(gpu_type=LARGE)


async def test_a_lost_part_without_room_waits_and_is_seated_as_that_part_once_there_is_room(
    allocator: Allocator,
) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 80, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    for order in orders:
        await allocator.tell(ready(order))
    lost = next(order for order in orders if order.node == "s")
    await allocator.tell(reported("s", 80, 80, foreign=[80, 80], gpu_type=SMALL))
    answer = await allocator.tell(failed(lost, "died"))
    assert of_type(DeploymentWaiting, answer)
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    told = of_type(PlacementReserved, await allocator.tell(PlacementRequested(deployment_id=DEPLOYMENT)))
    (new,) = [order for order in told if order.placement.replica == lost.placement.replica]
    assert (new.placement.candidate, new.placement.lanes) == (lost.placement.candidate, lost.placement.lanes)


async def test_a_fleet_is_released_as_a_whole(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    orders = await place(allocator, fleet_plan())
    await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    last = [await allocator.tell(stopped(order)) for order in orders][-1]
    assert of_type(DeploymentReleased, last)


async def test_two_fleets_at_once_never_share_bytes(redis_url: str, allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 240, gpu_type=LARGE))
    other = Allocator(redis_url)
    second = fleet_plan().model_copy(update={"deployment_id": UUID(int=7)})
    both = await asyncio.gather(place(allocator, fleet_plan()), place(other, second))
    await other.close()
    assert sorted(map(types, both)) == [[LARGE, LARGE], [LARGE, SMALL, SMALL]]


async def test_a_fleet_of_one_type_is_placed_first_and_again_and_routes_nothing(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 400, gpu_type=LARGE))
    shared = fleet_plan()
    assert shared.plan.fleet is not None
    alone = shared.plan.fleet.model_copy(update={"parts": shared.plan.fleet.parts[:1]})
    plan = shared.model_copy(update={"plan": shared.plan.model_copy(update={"fleet": alone})})
    orders = await place(allocator, plan)
    assert types(orders) == [SMALL, SMALL]
    assert all(order.placement.lanes == () for order in orders)
    for order in orders:
        await allocator.tell(ready(order))
    again = of_type(PlacementReserved, await allocator.tell(failed(orders[0], "died")))
    assert types(again) == [SMALL]


async def test_where_only_the_fleet_does_it_waits_for_all_of_its_room(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    before = computed(candidate(gpu_type=SMALL), deployment_id=UUID(int=7))
    (held,) = await place(allocator, before)
    (waiting,) = of_type(DeploymentWaiting, await allocator.tell(only_fleet()))
    assert waiting.num_missing == 3
    assert SMALL in waiting.detail and "placed together" in waiting.detail
    await allocator.tell(ReleaseAccepted(deployment_id=before.deployment_id))
    (due,) = of_type(PlacementRequested, await allocator.tell(stopped(held)))
    told = of_type(PlacementReserved, await allocator.tell(due))
    assert types(told) == [LARGE, SMALL, SMALL]


async def test_where_only_the_fleet_does_and_never_could_it_fails(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    (failure,) = of_type(DeploymentFailed, await allocator.tell(only_fleet()))
    assert SMALL in failure.detail


async def test_where_only_the_fleet_does_a_replica_that_dies_is_its_part_again_or_waits(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    orders = await place(allocator, only_fleet())
    for order in orders:
        await allocator.tell(ready(order))
    lost = next(order for order in orders if order.node == "s")
    (again,) = of_type(PlacementReserved, await allocator.tell(failed(lost, "died")))
    assert again.placement.candidate == lost.placement.candidate
    await allocator.tell(ready(again))
    await allocator.tell(reported("s", 80, 80, foreign=[80, 80], gpu_type=SMALL))
    (waiting,) = of_type(DeploymentWaiting, await allocator.tell(failed(again, "died")))
    assert waiting.num_missing == 1
    (due,) = of_type(PlacementRequested, await allocator.tell(reported("s", 80, 80, gpu_type=SMALL)))
    assert types(of_type(PlacementReserved, await allocator.tell(due))) == [SMALL]


async def test_a_part_that_failed_for_memory_is_estimated_higher_when_it_is_placed_next(allocator: Allocator) -> None:
    await allocator.tell(reported("s", 80, 80, gpu_type=SMALL))
    await allocator.tell(reported("l", 160, gpu_type=LARGE))
    orders = await place(allocator, only_fleet())
    short = next(order for order in orders if order.node == "s")
    told = failed(short, "CUDA out of memory").model_copy(update={"out_of_memory": True})
    assert of_type(DeploymentFailed, await allocator.tell(told))
    for order in orders:
        await allocator.tell(stopped(order))
    again = only_fleet().model_copy(update={"deployment_id": UUID(int=7)})
    (failure,) = of_type(DeploymentFailed, await allocator.tell(again))
    assert "is 8 B higher after 1 failure(s) for memory" in failure.detail
