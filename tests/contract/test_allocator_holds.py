"""Memory lent to calibrations, and plans that come again: the allocator's messages through JSON, on a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    DeploymentFailed,
    DeploymentKept,
    DeploymentWaiting,
    InventoryChanged,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    NodeStarted,
    PlacementRequested,
    PlacementReserved,
    ReplicaFailed,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.holds import MAX_WAITS
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import connect
from maveriq_allocator.trying import Lent
from tests.unit.allocator.plans import candidate, computed, memory, reported

HOLD = UUID("00000000-0000-4000-8000-00000000000a")


class Allocator:
    """One allocator process, fed by hand."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        self._handlers = {h.message: h for h in bound(wire(self.redis, Settings(redis_url, 60.0)))}

    async def tell(self, message: Message) -> list[Message]:
        """Both ways through the JSON that the broker would carry; without copies of records."""
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        returned = replies(ALLOCATOR, await self._handlers[type(message)].run(cause))
        told = [decode(type(reply), reply.topic, reply.model_dump_json().encode()) for reply in returned]
        return [reply for reply in told if not isinstance(reply, DeploymentKept)]


@pytest.fixture
async def allocator(redis_url: str) -> AsyncIterator[Allocator]:
    allocator = Allocator(redis_url)
    yield allocator
    await allocator.redis.aclose()


def wanted(size: int, hold_id: UUID = HOLD, **other: Any) -> MemoryRequested:
    asked: dict[str, Any] = {"rig": "torch-a6000", "gpu_type": "A6000", "keep_s": 60.0, **other}
    return MemoryRequested(hold_id=hold_id, bytes=size, **asked)


async def test_bytes_are_held_where_nobody_works_and_shown_as_a_calibrations(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 200, 100))
    await allocator.tell(computed(candidate()))
    told, changed = await allocator.tell(wanted(60))
    assert told == MemoryHeld(hold_id=HOLD, node="torch-a6000", gpu="a/0")
    assert told.routing_key == "memory.held.v1.torch-a6000"
    assert isinstance(changed, InventoryChanged)
    busy, idle = changed.gpus[1], changed.gpus[0]
    assert [holding.calibration for holding in busy.holdings] == [False]
    (holding,) = idle.holdings
    assert (holding.deployment_id, holding.bytes, holding.calibration) == (HOLD, 60, True)
    assert idle.free_bytes == 140


async def test_asking_again_keeps_the_same_bytes_and_holds_no_more(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100))
    first, _ = await allocator.tell(wanted(60))
    assert await allocator.tell(wanted(60)) == [first]
    (changed,) = await allocator.tell(reported("a", 100))
    assert isinstance(changed, InventoryChanged) and changed.gpus[0].free_bytes == 40


async def test_only_the_gpus_asked_for_are_taken(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100, 300))
    (told, _) = await allocator.tell(wanted(60, gpus=("a/0",)))
    assert isinstance(told, MemoryHeld) and told.gpu == "a/0"


@pytest.mark.parametrize(
    ("asked", "words", "largest_bytes"),
    [
        (wanted(200), "a/0 has most", 100),
        (wanted(20, gpu_type="L4"), "no worker reports a GPU of type L4", 0),
        (wanted(20, gpus=("b/0",)), "of b/0", 0),
    ],
)
async def test_what_there_is_no_room_for_is_answered_with_the_reason(
    allocator: Allocator, asked: MemoryRequested, words: str, largest_bytes: int
) -> None:
    await allocator.tell(reported("a", 100))
    (told,) = await allocator.tell(asked)
    assert isinstance(told, MemoryHeld)
    assert told.gpu is None and words in told.problem
    assert told.largest_bytes == largest_bytes


async def test_a_deployment_that_lacks_only_what_a_calibration_holds_has_it_given_back(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100))
    await allocator.tell(wanted(60))
    (waiting,) = await allocator.tell(computed(candidate()))
    assert isinstance(waiting, DeploymentWaiting)
    (refused,) = await allocator.tell(wanted(60))
    assert isinstance(refused, MemoryHeld) and refused.gpu is None
    assert "a deployment needs the memory" in refused.problem and refused.largest_bytes == 100
    changed, again = await allocator.tell(MemoryFreed(hold_id=HOLD))
    assert isinstance(changed, InventoryChanged) and changed.gpus[0].free_bytes == 100
    assert isinstance(again, PlacementRequested)
    order, _ = await allocator.tell(again)
    assert isinstance(order, PlacementReserved)
    assert await allocator.tell(MemoryFreed(hold_id=HOLD)) == []


async def test_one_that_may_not_wait_is_tried_again_for_a_calibrations_memory_and_then_fails(
    allocator: Allocator,
) -> None:
    await allocator.tell(reported("a", 100))
    await allocator.tell(wanted(60))
    impatient = computed(candidate(), max_wait_s=0)
    for _ in range(MAX_WAITS):
        with pytest.raises(Lent):  # and so comes again later
            await allocator.tell(impatient)
    (failed,) = await allocator.tell(impatient)
    assert isinstance(failed, DeploymentFailed)


async def test_what_would_not_fit_anyway_fails_at_once(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100))
    await allocator.tell(wanted(60))
    (failed,) = await allocator.tell(computed(candidate(stage=memory(layer=20))))
    assert isinstance(failed, DeploymentFailed)
    kept, *_ = await allocator.tell(wanted(60))
    assert isinstance(kept, MemoryHeld) and kept.gpu == "a/0"


async def test_a_hold_that_nobody_asks_for_again_ends_with_a_report(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100))
    await allocator.tell(wanted(60, keep_s=0.05))
    await asyncio.sleep(0.1)
    told = await allocator.tell(reported("b", 100))
    assert [(c.node, c.gpus[0].free_bytes) for c in told if isinstance(c, InventoryChanged)] == [("a", 100), ("b", 100)]


async def test_a_worker_that_comes_up_is_told_nothing_about_a_calibration(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100))
    await allocator.tell(wanted(60))
    assert await allocator.tell(NodeStarted(node="a")) == []


async def test_a_newer_plan_moves_nothing_and_is_used_for_what_is_placed_next(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100, 100, 100))
    (first, _) = await allocator.tell(computed(candidate()))
    assert isinstance(first, PlacementReserved)
    again = await allocator.tell(computed(candidate(pp=2), candidate()))
    assert [m for m in again if isinstance(m, PlacementReserved)] == [first]
    at = first.placement
    lost = ReplicaFailed(
        deployment_id=first.deployment_id, replica=at.replica, token=at.token, node=at.node, detail="died"
    )
    (next_order, _) = await allocator.tell(lost)
    assert isinstance(next_order, PlacementReserved)
    assert next_order.placement.candidate.configuration.pp == 2
