"""Replicas that move so that there is room: messages through JSON, on a real Redis."""

from collections.abc import AsyncIterator
from typing import TypeVar
from uuid import UUID

import pytest

from maveriq.contracts import (
    DefragmentationProgressed,
    DefragmentationRequested,
    DeploymentDraining,
    DeploymentWaiting,
    Message,
    MoveRequested,
    PlacementRequested,
    PlacementReserved,
    ReleaseAccepted,
    ReplicaReady,
)
from tests.contract.test_allocator import failed, held, of_type, ready, stopped
from tests.contract.test_allocator_waiting import FIRST, FOURTH, SECOND, THIRD, Allocators, gone, serving, wants, who
from tests.unit.allocator.plans import reported

M = TypeVar("M", bound=Message)
ID = UUID("00000000-0000-4000-8000-0000000000d1")
DRY, APPLY = (DefragmentationRequested(defragmentation_id=ID, apply=apply) for apply in (False, True))


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    allocators = Allocators(redis_url)
    yield allocators
    await allocators.redis.aclose()


def only(kind: type[M], messages: list[Message]) -> M:
    (found,) = of_type(kind, messages)
    return found


async def fragmented(allocators: Allocators) -> tuple[PlacementReserved, PlacementReserved]:
    """40 of 100 are held on each of two GPUs, and 80 are wanted."""
    for node in ("a", "b"):
        await allocators.tell(reported(node, 60))
    first = await serving(allocators, FIRST, layer=5)
    second = await serving(allocators, SECOND, layer=5)
    for node in ("a", "b"):
        await allocators.tell(reported(node, 100))
    assert only(DeploymentWaiting, await allocators.tell(wants(THIRD))).deployment_id == THIRD
    return first, second


async def test_a_plan_of_moves_is_told_and_nothing_is_done(allocators: Allocators) -> None:
    await fragmented(allocators)
    (told,) = await allocators.tell(DRY)
    assert isinstance(told, DefragmentationProgressed)
    assert (told.waiter, told.problem, told.finished, told.is_fewest) == (THIRD, "", True, True)
    (move,) = told.moves
    assert {move.node, move.to_node} == {"a", "b"}
    assert await allocators.tell(DRY) == [told]
    assert sorted(held(await allocators.tell(reported("a", 100))).values()) == [40]


async def test_a_move_starts_a_copy_that_relieves_the_replica_and_then_what_waits_is_seated(
    allocators: Allocators,
) -> None:
    orders = {order.deployment_id: order for order in await fragmented(allocators)}
    told, due = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed) and not told.finished
    old = orders[told.moves[0].deployment_id]

    copy = only(PlacementReserved, await allocators.tell(due))
    assert copy.node == told.moves[0].to_node != old.node
    assert copy.placement.replica != old.placement.replica
    assert copy.placement.candidate == old.placement.candidate
    assert only(PlacementReserved, await allocators.tell(due)) == copy

    drain = only(DeploymentDraining, await allocators.tell(ready(copy)))
    assert (drain.token, drain.goes_on) == (old.placement.token, True)

    after = await allocators.tell(stopped(drain))
    further, again = only(MoveRequested, after), only(PlacementRequested, after)
    assert again.deployment_id == THIRD
    done = only(DefragmentationProgressed, await allocators.tell(further))
    assert (done.num_done, done.finished, done.problem) == (1, True, "")
    seat = only(PlacementReserved, await allocators.tell(again))
    assert (seat.deployment_id, seat.node) == (THIRD, old.node)
    assert sorted(
        held([*await allocators.tell(reported("a", 100)), *await allocators.tell(reported("b", 100))]).values()
    ) == [80, 80]


async def test_what_moves_free_is_kept_for_the_one_that_waits(allocators: Allocators) -> None:
    await fragmented(allocators)
    _, due = await allocators.tell(APPLY)
    copy = only(PlacementReserved, await allocators.tell(due))
    drain = only(DeploymentDraining, await allocators.tell(ready(copy)))
    freed = drain.node
    assert who(await allocators.tell(wants(FOURTH, layer=4))) == []
    after = await allocators.settle(stopped(drain))
    assert [(o.deployment_id, o.node) for o in of_type(PlacementReserved, after) if o.deployment_id == THIRD] == [
        (THIRD, freed)
    ]


async def test_a_copy_that_does_not_start_leaves_the_replica_serving_and_ends_the_moves(
    allocators: Allocators,
) -> None:
    await fragmented(allocators)
    _, due = await allocators.tell(APPLY)
    copy = only(PlacementReserved, await allocators.tell(due))
    answer = await allocators.tell(failed(copy, "device lost"))
    told = only(DefragmentationProgressed, answer)
    assert told.finished and "device lost" in told.problem and "goes on where it was" in told.problem
    assert of_type(DeploymentDraining, answer) == [] and of_type(PlacementReserved, answer) == []
    assert held(answer)[copy.placement.stages[0].gpus[0]] == 40
    assert await allocators.tell(failed(copy, "device lost")) == answer


async def test_a_replica_that_dies_while_its_copy_starts_is_not_placed_a_third_time(allocators: Allocators) -> None:
    orders = {order.deployment_id: order for order in await fragmented(allocators)}
    told, due = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed)
    old = orders[told.moves[0].deployment_id]
    copy = only(PlacementReserved, await allocators.tell(due))
    assert of_type(DeploymentWaiting, await allocators.tell(failed(old, "died"))) == []
    assert only(MoveRequested, await allocators.tell(ready(copy))).number == 1


async def test_a_gpu_is_emptied_or_it_is_said_why_not(allocators: Allocators) -> None:
    first, second = await fragmented(allocators)
    gpu = second.placement.stages[0].gpus[0]
    asked = DefragmentationRequested(defragmentation_id=UUID(int=7), free_gpu=gpu)
    (told,) = await allocators.tell(asked)
    assert isinstance(told, DefragmentationProgressed)
    assert [(move.deployment_id, move.to_node) for move in told.moves] == [(SECOND, first.node)]
    (unknown,) = await allocators.tell(DefragmentationRequested(defragmentation_id=UUID(int=8), free_gpu="z/0"))
    assert isinstance(unknown, DefragmentationProgressed) and "no node reports a GPU z/0" in unknown.problem
    await gone(allocators, first)
    await allocators.tell(wants(FOURTH, layer=5))
    (starts,) = await allocators.tell(
        DefragmentationRequested(defragmentation_id=UUID(int=9), free_gpu=f"{first.node}/0")
    )
    assert isinstance(starts, DefragmentationProgressed) and starts.finished


async def test_without_anybody_who_waits_there_is_nothing_to_do(allocators: Allocators) -> None:
    (told,) = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed)
    assert (told.finished, told.problem) == (True, "no deployment waits for memory")


async def test_a_release_in_the_middle_of_a_move_drains_both(allocators: Allocators) -> None:
    await fragmented(allocators)
    told, due = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed)
    moving = told.moves[0].deployment_id
    copy = only(PlacementReserved, await allocators.tell(due))
    drains = of_type(DeploymentDraining, await allocators.tell(ReleaseAccepted(deployment_id=moving)))
    assert {drain.token for drain in drains} == {told.moves[0].token, copy.placement.token}
    assert not any(drain.goes_on for drain in drains)
    assert of_type(DeploymentDraining, await allocators.tell(ready(copy)))[0].token == copy.placement.token
    assert isinstance(ready(copy), ReplicaReady)


async def test_a_replica_that_has_moved_and_is_started_again_by_a_worker_that_forgot_is_told_to_stop_each_time(
    allocators: Allocators,
) -> None:
    """Its order comes again after the worker restarted; that it stopped before may be heard at any time."""
    orders = {order.deployment_id: order for order in await fragmented(allocators)}
    told, due = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed)
    old = orders[told.moves[0].deployment_id]
    copy = only(PlacementReserved, await allocators.tell(due))
    drain = only(DeploymentDraining, await allocators.tell(ready(copy)))
    assert only(DeploymentDraining, await allocators.tell(ready(old))) == drain  # while it still drains
    for _ in range(2):
        await allocators.tell(stopped(drain))
        again = only(DeploymentDraining, await allocators.tell(ready(old)))
        assert (again.token, again.node, again.goes_on) == (old.placement.token, old.node, True)
    assert only(MoveRequested, await allocators.tell(ready(copy))).number == 1
    released = await allocators.tell(ReleaseAccepted(deployment_id=old.deployment_id))
    assert [order.token for order in of_type(DeploymentDraining, released)] == [copy.placement.token]
    assert only(DeploymentDraining, await allocators.tell(ready(old))).token == old.placement.token


async def test_a_copy_that_relieved_a_replica_and_was_lost_does_not_keep_it_from_being_told_to_drain(
    allocators: Allocators,
) -> None:
    """The allocator that was to tell it died, and hears that the copy is ready again once that is lost."""
    orders = {order.deployment_id: order for order in await fragmented(allocators)}
    told, due = await allocators.tell(APPLY)
    assert isinstance(told, DefragmentationProgressed)
    old = orders[told.moves[0].deployment_id]
    copy = only(PlacementReserved, await allocators.tell(due))
    await allocators.tell(ready(copy))
    again = await allocators.tell(failed(copy, "died"))
    drains = of_type(DeploymentDraining, await allocators.tell(ready(copy)))
    assert {drain.token for drain in drains} == {copy.placement.token, old.placement.token}
    seats = [order for order in of_type(PlacementReserved, again) if order.placement.replica == copy.placement.replica]
    (seat,) = seats
    assert seat.placement.token != copy.placement.token  # nobody else serves
