"""Many wait for few GPUs, and replicas move, while messages repeat, come in any order and allocators die."""

import random
from uuid import UUID

import pytest

from maveriq.contracts import DefragmentationProgressed, DefragmentationRequested, ReleaseAccepted, SweepDue
from maveriq_allocator import keys
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.store import Store, connect
from tests.store.test_allocator_races import Cluster, check, held_by_records
from tests.unit.allocator.plans import candidate, computed, memory, reported

NUM_DEPLOYMENTS, MAX_STEPS = 12, 600


@pytest.mark.parametrize("seed", range(4))
async def test_whoever_waits_is_seated_in_the_end_whatever_is_repeated_reordered_or_killed(
    redis_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    store = connect(redis_url)
    cluster = Cluster(store, chance)
    cluster.workers.failing = 0.0
    for name in ("a", "b", "c"):
        await Inventory(store).report(reported(name, 100))
    ids = [UUID(int=number + 1) for number in range(NUM_DEPLOYMENTS)]
    sizes = [chance.choice((5, 9, 12)) for _ in ids]
    cluster.waiting += [
        computed(candidate(stage=memory(layer=size)), deployment_id=each, priority=chance.choice(("high", "normal")))
        for each, size in zip(ids, sizes, strict=True)
    ]
    served: set[UUID] = set()
    for _ in range(MAX_STEPS):
        await cluster.step()
        for token in list(cluster.workers.running):
            deployment_id = UUID(token.split(".")[0])
            if deployment_id not in served:
                served.add(deployment_id)
                cluster.waiting.append(ReleaseAccepted(deployment_id=deployment_id))
        if chance.random() < 0.1:
            cluster.waiting.append(SweepDue())
            await store.delete(keys.LINE_SURVEY)  # as if the time of a survey whose allocator died were over
        if len(served) == NUM_DEPLOYMENTS:
            break
    assert served == set(ids)
    await cluster.settle()
    await check(store)
    assert not await held_by_records(store)
    cluster.waiting.append(SweepDue())
    await store.delete(keys.LINE_SURVEY)
    await cluster.settle()
    assert await store.zcard(keys.LINE) == 0
    await store.aclose()


@pytest.mark.parametrize("seed", range(4))
async def test_replicas_that_move_meanwhile_hold_nothing_twice_and_leak_nothing(redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    store = connect(redis_url)
    cluster = Cluster(store, chance)
    cluster.workers.failing = 0.1
    for name in ("a", "b", "c"):
        await Inventory(store).report(reported(name, 100, 100))
    ids = [UUID(int=number + 1) for number in range(6)]
    for each in ids:
        layer = chance.choice((3, 4, 5))
        cluster.waiting.append(computed(candidate(stage=memory(layer=layer)), deployment_id=each, replicas=2))
    for number in range(20):
        gpu = f"{chance.choice('abc')}/{chance.randint(0, 1)}"
        asked = DefragmentationRequested(defragmentation_id=UUID(int=100 + number), apply=True, free_gpu=gpu)
        cluster.waiting.append(asked)
        for _ in range(4):
            await cluster.step()
        await check(store)
        if chance.random() < 0.2:
            cluster.waiting += cluster.workers.crash()
    running = {token.split(".")[0] for token in cluster.workers.running}
    cluster.waiting += [ReleaseAccepted(deployment_id=each) for each in ids]
    await cluster.settle()
    await check(store)
    assert running
    assert await moves_done(store) > 0
    assert not await held_by_records(store)
    assert cluster.workers.running == {}
    await store.aclose()


async def moves_done(store: Store) -> int:
    found = [key async for key in store.scan_iter("maveriq:allocator:defragmentation:*")]
    told = [DefragmentationProgressed.model_validate_json(await store.get(key)) for key in found]
    return sum(each.num_done for each in told)
