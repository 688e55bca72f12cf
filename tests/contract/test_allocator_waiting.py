"""Deployments that wait for memory, lose their node or teach by failing: messages through JSON, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    DeploymentKept,
    DeploymentWaiting,
    FailureReason,
    Message,
    NodeReported,
    PlacementRequested,
    PlacementReserved,
    PlanComputed,
    Priority,
    ReleaseAccepted,
    ReplicaLost,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator import keys
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.record import Record
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import connect
from maveriq_allocator.waiting import PATIENCE_S
from tests.contract.test_allocator import failed, held, of_type, ready, stopped
from tests.unit.allocator.plans import candidate, computed, memory, reported

FIRST, SECOND, THIRD, FOURTH = (UUID(int=number) for number in range(1, 5))


class Allocators:
    """Two allocator processes on one Redis, fed by hand in turn."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        wired = [wire(self.redis, Settings(redis_url, 60.0)) for _ in range(2)]
        self._handlers = [{h.message: h for h in bound(handlers)} for handlers in wired]
        self._line = wired[0].surveying.line
        self._turn = 0

    async def tell(self, message: Message) -> list[Message]:
        """Both ways through the JSON that the broker would carry; without copies of records."""
        self._turn += 1
        handler = self._handlers[self._turn % 2][type(message)]
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        returned = replies(ALLOCATOR, await handler.run(cause))
        told = [decode(type(reply), reply.topic, reply.model_dump_json().encode()) for reply in returned]
        return [reply for reply in told if not isinstance(reply, DeploymentKept)]

    async def settle(self, message: Message) -> list[Message]:
        """Also what it asks of itself, to the end."""
        told = await self.tell(message)
        for again in of_type(PlacementRequested, told):
            told += await self.settle(again)
        return told

    async def waited(self, deployment_id: UUID, seconds: float) -> None:
        """As if it had waited for so long."""
        key = keys.deployment(deployment_id)
        since = (await self._line.now()) - timedelta(seconds=seconds)
        text = await self.redis.hget(key, "record")
        record = Record.model_validate_json(text)
        assert record.waiting is not None
        waiting = record.waiting.model_copy(update={"since": since, "told_at": since})
        await self.redis.hset(key, "record", record.model_copy(update={"waiting": waiting}).model_dump_json())
        await self._line.join(deployment_id, Priority.NORMAL, since)


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    allocators = Allocators(redis_url)
    yield allocators
    await allocators.redis.aclose()


def wants(deployment_id: UUID, layer: int = 10, **other: Any) -> PlanComputed:
    """Eight layers on one GPU: 80 bytes by default."""
    return computed(candidate(stage=memory(layer=layer)), deployment_id=deployment_id, **other)


def who(messages: list[Message]) -> list[UUID]:
    """The deployments that got seats."""
    return [order.deployment_id for order in of_type(PlacementReserved, messages)]


async def serving(allocators: Allocators, deployment_id: UUID, **other: Any) -> PlacementReserved:
    (order,) = of_type(PlacementReserved, await allocators.tell(wants(deployment_id, **other)))
    await allocators.tell(ready(order))
    return order


async def gone(allocators: Allocators, order: PlacementReserved) -> list[Message]:
    await allocators.tell(ReleaseAccepted(deployment_id=order.deployment_id))
    return await allocators.settle(stopped(order))


async def test_what_would_fit_an_empty_node_waits_with_the_reason_and_is_seated_when_memory_comes_back(
    allocators: Allocators,
) -> None:
    await allocators.tell(reported("a", 100))
    order = await serving(allocators, FIRST)
    (waiting, *rest) = await allocators.tell(wants(SECOND))
    assert isinstance(waiting, DeploymentWaiting) and rest == []
    assert "80 B free on each" in waiting.detail and "a: 20 B" in waiting.detail
    assert (waiting.num_missing, waiting.num_placed) == (1, 0)
    assert who(await gone(allocators, order)) == [SECOND]


async def test_what_could_never_fit_fails_at_once_and_says_so(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    await serving(allocators, FIRST)
    (failure,) = await allocators.tell(wants(SECOND, layer=13))
    assert isinstance(failure, DeploymentFailed)
    assert failure.reason is FailureReason.NO_CAPACITY
    assert "would not fit if nothing else ran either" in failure.detail
    assert "104 B free on each" in failure.detail and "a: 100 B" in failure.detail


async def test_one_that_may_not_wait_fails_at_once(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    await serving(allocators, FIRST)
    (failure,) = await allocators.tell(wants(SECOND, max_wait_s=0))
    assert isinstance(failure, DeploymentFailed)
    assert "a: 20 B" in failure.detail


async def test_one_that_waited_as_long_as_it_may_fails_with_the_reason(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    order = await serving(allocators, FIRST)
    await allocators.tell(wants(SECOND, max_wait_s=300))
    assert of_type(PlacementRequested, await allocators.tell(reported("b", 10))) == []
    await allocators.waited(SECOND, 301)
    (failure,) = of_type(DeploymentFailed, await allocators.settle(reported("c", 10)))
    assert failure.deployment_id == SECOND
    assert "waited 301 s" in failure.detail
    assert who(await gone(allocators, order)) == []


async def test_memory_goes_to_the_highest_priority_and_then_to_the_first_that_came(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    order = await serving(allocators, FIRST)
    for deployment_id, priority in ((SECOND, "normal"), (THIRD, "normal"), (FOURTH, "high")):
        await allocators.tell(wants(deployment_id, priority=priority))
    seated: list[UUID] = []
    for _ in range(3):
        (order,) = of_type(PlacementReserved, await gone(allocators, order))
        seated.append(order.deployment_id)
    assert seated == [FOURTH, SECOND, THIRD]


async def test_a_small_one_goes_ahead_of_a_large_one_that_does_not_fit_yet(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    order = await serving(allocators, FIRST)
    await allocators.tell(wants(SECOND, layer=12))
    await allocators.tell(wants(THIRD, layer=5))
    other = await serving(allocators, FOURTH, layer=2)
    assert who(await gone(allocators, order)) == [THIRD]
    assert await gone(allocators, other) != []


async def test_a_large_one_that_waited_long_is_kept_its_gpus_until_it_fits(allocators: Allocators) -> None:
    """Small ones that come later get the other GPUs, and not those."""
    await allocators.tell(reported("a", 100, 100))
    await serving(allocators, FIRST, layer=6)
    small = await serving(allocators, SECOND, layer=12)
    await allocators.tell(wants(THIRD, layer=12))
    await allocators.waited(THIRD, PATIENCE_S + 1)
    await allocators.tell(reported("b", 10))
    (waiting,) = of_type(DeploymentWaiting, await allocators.tell(wants(FOURTH, layer=4)))
    assert "1 GPU(s) are kept for a deployment that is ahead in the line" in waiting.detail
    assert who(await gone(allocators, small)) == [THIRD, FOURTH]
    assert await allocators.redis.exists(keys.CLAIM) == 0


async def test_what_waits_can_be_released_and_then_is_seated_no_more(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    order = await serving(allocators, FIRST)
    await allocators.tell(wants(SECOND))
    await allocators.tell(ReleaseAccepted(deployment_id=SECOND))
    assert who(await gone(allocators, order)) == []
    assert await allocators.redis.exists(keys.LINE) == 0


async def test_all_replicas_are_seated_together_or_wait_together(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))

    await allocators.tell(reported("b", 100))
    order = await serving(allocators, SECOND)
    (waiting,) = of_type(DeploymentWaiting, await allocators.tell(wants(THIRD, replicas=2)))
    assert waiting.num_missing == 2
    assert who(await gone(allocators, order)) == [THIRD, THIRD]


async def test_a_replica_that_finds_no_other_seat_waits_while_the_others_serve(allocators: Allocators) -> None:
    for node in ("a", "b"):
        await allocators.tell(reported(node, 100))
    plan = computed(candidate(), candidate(pp=2), deployment_id=FIRST, replicas=2)
    first, second = of_type(PlacementReserved, await allocators.tell(plan))
    for order in (first, second):
        await allocators.tell(ready(order))
    await allocators.tell(reported(second.node, 100, foreign=[50]))
    answer = await allocators.tell(failed(second, "device lost"))
    (waiting,) = of_type(DeploymentWaiting, answer)
    assert of_type(DeploymentFailed, answer) == [] and of_type(DeploymentDraining, answer) == []
    assert "replica 1 failed (device lost)" in waiting.detail
    assert (waiting.num_missing, waiting.num_placed) == (1, 2)
    (again,) = of_type(PlacementReserved, await allocators.settle(reported("c", 40, 40)))
    assert (again.placement.replica, again.placement.number, again.node) == (1, 2, "c")


async def test_a_failure_for_memory_raises_the_estimate_of_all_that_are_alike(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100))
    (order,) = of_type(PlacementReserved, await allocators.tell(wants(FIRST)))
    told = failed(order, "CUDA out of memory").model_copy(update={"out_of_memory": True})
    (failure,) = of_type(DeploymentFailed, await allocators.tell(told))
    assert "no candidate is left" in failure.detail
    await allocators.tell(told)
    await allocators.tell(stopped(order))
    (again,) = of_type(PlacementReserved, await allocators.tell(wants(SECOND)))
    assert again.placement.stages[0].reserved_bytes == 88
    assert again.placement.candidate.memory.runtime_bytes == 8
    (waiting,) = of_type(DeploymentWaiting, await allocators.tell(wants(THIRD)))
    assert "is 8 B higher after 1 failure(s) for memory" in waiting.detail
    (other,) = of_type(PlacementReserved, await allocators.tell(reported_other()))
    assert other.placement.stages[0].reserved_bytes == 8


def reported_other() -> PlanComputed:
    """Another batch: not alike."""
    other = candidate(stage=memory(layer=1))
    batched = other.configuration.model_copy(update={"max_batch": 1})
    return computed(other.model_copy(update={"configuration": batched}), deployment_id=FOURTH)


async def test_waiting_messages_twice_change_nothing(allocators: Allocators) -> None:
    async def twice(message: Message) -> list[Message]:
        answer = await allocators.tell(message)
        assert await allocators.tell(message) == answer
        return answer

    await twice(reported("a", 100))
    order = await serving(allocators, FIRST)
    await twice(wants(SECOND))
    await twice(PlacementRequested(deployment_id=SECOND))
    await allocators.tell(ReleaseAccepted(deployment_id=FIRST))
    (again,) = of_type(PlacementRequested, await twice(stopped(order)))
    seated = await twice(again)
    assert who(seated) == [SECOND]
    assert held(seated) == {"a/0": 80}


async def test_two_allocators_that_try_the_same_at_once_seat_it_once(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100, 100))
    orders = [await serving(allocators, FIRST), await serving(allocators, SECOND)]
    await allocators.tell(wants(THIRD))
    for order in orders:
        await allocators.tell(ReleaseAccepted(deployment_id=order.deployment_id))
        await allocators.tell(stopped(order))
    asked = PlacementRequested(deployment_id=THIRD)
    answers = await asyncio.gather(*(allocators.tell(asked) for _ in range(6)))
    assert len({order.placement.token for answer in answers for order in of_type(PlacementReserved, answer)}) == 1
    assert sorted(held(await allocators.tell(reported("a", 100, 100))).values()) == [0, 80]


async def lost(allocators: Allocators, message: Message) -> list[Message]:
    """What follows once the loss that a message shows is heard of."""
    (loss,) = of_type(ReplicaLost, await allocators.tell(message))
    answer = await allocators.settle(loss)
    assert of_type(PlacementReserved, await allocators.tell(loss)) == of_type(PlacementReserved, answer)
    return answer


def without_gpu(node: str, number: int) -> NodeReported:
    whole = reported(node, 100, 100)
    return whole.model_copy(update={"gpus": tuple(gpu for gpu in whole.gpus if gpu.id != f"{node}/{number}")})


async def test_a_replica_whose_gpu_is_lost_gets_the_same_candidate_elsewhere(allocators: Allocators) -> None:
    await allocators.tell(reported("a", 100, 100))
    plan = computed(candidate(), candidate(), deployment_id=FIRST)
    (order,) = of_type(PlacementReserved, await allocators.tell(plan))
    number = int(order.placement.stages[0].gpus[0].removeprefix("a/"))
    (again,) = of_type(PlacementReserved, await lost(allocators, without_gpu("a", number)))
    assert again.placement.candidate == order.placement.candidate
    assert again.placement.stages[0].gpus == (f"a/{1 - number}",)
    assert again.placement.token != order.placement.token


async def test_a_replica_whose_gpu_is_lost_waits_where_no_other_has_room_and_the_rest_serve(
    allocators: Allocators,
) -> None:
    await allocators.tell(reported("a", 100, 100))
    orders = of_type(PlacementReserved, await allocators.tell(wants(FIRST, replicas=2)))
    for order in orders:
        await allocators.tell(ready(order))
    answer = await lost(allocators, without_gpu("a", 0))
    (waiting,) = of_type(DeploymentWaiting, answer)
    assert "is lost (node a no longer has GPU a/0)" in waiting.detail
    assert of_type(DeploymentFailed, answer) == [] and of_type(DeploymentDraining, answer) == []
    assert who(await allocators.settle(reported("b", 100))) == [FIRST]
