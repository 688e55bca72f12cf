"""Holds and reservations together never take more of a GPU than it has, whoever is faster and whoever dies."""

import asyncio
import random
from collections.abc import Awaitable
from contextlib import suppress
from uuid import UUID

import pytest

from maveriq.bus.handling import Replies, replies
from maveriq.contracts import (
    DeploymentDraining,
    MemoryFreed,
    MemoryHeld,
    MemoryRequested,
    Message,
    PlanComputed,
    ReleaseAccepted,
    ReplicaStopped,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.holds import Holds
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import Store, connect
from maveriq_allocator.trying import Lent
from tests.unit.allocator.plans import candidate, computed, memory, reported

TOTALS = {"a": (200, 120, 60), "b": (160, 160), "c": (90,)}


async def check(store: Store) -> int:
    """Bytes that calibrations hold in all."""
    held_for_calibrations = 0
    for node in await Inventory(store).snapshot():
        for state in node.gpus:
            assert sum(holding.bytes for holding in state.holdings) <= state.gpu.total_bytes - state.gpu.foreign_bytes
            held_for_calibrations += sum(holding.bytes for holding in state.holdings if holding.calibration)
    return held_for_calibrations


def some_message(chance: random.Random) -> Message:
    kind = chance.randrange(6)
    if kind < 2:
        stage = memory(layer=chance.randint(2, 9), runtime=3)
        return computed(
            candidate(pp=chance.randint(1, 3), stage=stage), deployment_id=UUID(int=chance.randint(1, 1000))
        )
    if kind == 2:
        return MemoryFreed(hold_id=UUID(int=chance.randint(1, 12)))
    hold_id = UUID(int=chance.randint(1, 12))
    keep_s = chance.choice((0.01, 60.0))
    return MemoryRequested(
        hold_id=hold_id, rig="r", gpu_type="A6000", bytes=chance.randint(1, 120), keep_s=keep_s
    )  # fmt: skip


async def heard(handling: Awaitable[Replies]) -> Replies:
    """Deployments that wait for a calibration's memory would come again."""
    with suppress(Lent):
        return await handling
    return None


@pytest.mark.parametrize("seed", range(6))
async def test_holds_and_reservations_together_never_exceed_a_gpu(redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    store = connect(redis_url)
    for name, totals in TOTALS.items():
        await Inventory(store).report(reported(name, *totals))
    allocators = [{h.message: h.run for h in bound(wire(store, Settings("redis://", 60.0)))} for _ in range(2)]
    placed: set[UUID] = set()
    for _ in range(25):
        messages = [some_message(chance) for _ in range(6)]
        placed |= {message.deployment_id for message in messages if isinstance(message, PlanComputed)}
        if placed and chance.random() < 0.5:
            messages.append(ReleaseAccepted(deployment_id=chance.choice(sorted(placed))))
        answers = await asyncio.gather(*(heard(chance.choice(allocators)[type(each)](each)) for each in messages))
        await check(store)
        for drained in (
            m for answer in answers for m in replies(ALLOCATOR, answer) if isinstance(m, DeploymentDraining)
        ):
            await allocators[0][ReplicaStopped](ReplicaStopped(**drained.model_dump()))
    for number in range(1, 13):
        await allocators[1][MemoryFreed](MemoryFreed(hold_id=UUID(int=number)))
    assert await check(store) == 0
    await store.aclose()


async def test_of_many_holds_at_once_as_many_are_granted_as_fit(redis_url: str) -> None:
    store = connect(redis_url)
    await Inventory(store).report(reported("a", 100, 100))
    handlers = {h.message: h.run for h in bound(wire(store, Settings("redis://", 60.0)))}
    asked = [MemoryRequested(hold_id=UUID(int=n), rig="r", gpu_type="A6000", bytes=40, keep_s=60) for n in range(1, 8)]
    answers = await asyncio.gather(*(handlers[MemoryRequested](each) for each in asked))
    assert sum(isinstance(m, MemoryHeld) and m.gpu is not None for a in answers for m in replies(ALLOCATOR, a)) == 4
    assert await check(store) == 160
    await store.aclose()


async def test_a_dead_profilers_hold_ends_by_itself_and_one_asked_for_again_does_not(redis_url: str) -> None:
    store = connect(redis_url)
    await Inventory(store).report(reported("a", 100))
    handlers = {h.message: h.run for h in bound(wire(store, Settings("redis://", 60.0)))}
    dead, alive = (
        MemoryRequested(hold_id=UUID(int=n), rig="r", gpu_type="A6000", bytes=40, keep_s=0.05) for n in (1, 2)
    )
    await handlers[MemoryRequested](dead)
    await handlers[MemoryRequested](alive)
    await handlers[MemoryRequested](alive.model_copy(update={"keep_s": 60.0}))
    await asyncio.sleep(0.1)
    assert [place.gpu for place in await Holds(store).end()] == ["a/0"]
    assert await check(store) == 40
    assert await Holds(store).find(alive.hold_id) is not None
    await store.aclose()
