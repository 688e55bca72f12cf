"""Two hundred deploys and releases at once while workers and allocators die: what is reserved is what runs, always."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq.bus import Handler
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import Message, PlacementReserved, ReleaseAccepted, ReplicaLost
from maveriq.topology import INGRESS
from maveriq_allocator.__main__ import run
from tests.store.scripted_workers import ScriptedWorker
from tests.store.watchman import Watchman
from tests.unit.allocator.plans import candidate, computed, memory

NUM_DEPLOYMENTS = 200
NUM_ALLOCATORS = 3
NODES = {f"n{number}": {f"n{number}/{gpu}": 300 + 150 * gpu for gpu in range(4)} for number in range(6)}
TOTALS = {gpu: total for gpus in NODES.values() for gpu, total in gpus.items()}
GRACE_S = 3.0
STORM_S = 8.0
LOSSES = "losses"
PATIENCE_S = 60.0  # it is over as soon as all is well


class Cluster:
    def __init__(self, redis_url: str, chance: random.Random) -> None:
        self.redis_url, self.chance = redis_url, chance
        self.broker = InProcessBroker()
        self.workers = {name: ScriptedWorker(self.broker, name, totals, chance) for name, totals in NODES.items()}
        self.heard: Counter[type[Message]] = Counter()
        self.broker.declare(QueueSpec(LOSSES, bindings=(ReplicaLost.topic,)))
        self.bus = InProcessBus(self.broker)
        self._services: list[tuple[InProcessBus, asyncio.Task[None]]] = []

    async def start(self) -> None:
        async def hear(message: Message) -> None:
            self.heard[type(message)] += 1

        ready = asyncio.Event()
        handlers: list[Handler[Any]] = [Handler(kind, hear) for kind in INGRESS.consumes]
        self._services.append((self.bus, asyncio.create_task(self.bus.run(INGRESS, handlers, ready=ready.set))))
        await ready.wait()
        for _ in range(NUM_ALLOCATORS):
            self.start_allocator()
        for worker in self.workers.values():
            await worker.connect(anew=True)

    def start_allocator(self) -> None:
        bus = InProcessBus(self.broker, retry_delay_s=lambda attempt: 0.1 * attempt)
        env = {"MAVERIQ_REDIS_URL": self.redis_url, "MAVERIQ_GRACE_S": str(GRACE_S)}
        self._services.append((bus, asyncio.create_task(run(bus, env))))

    async def kill_allocator(self) -> None:
        """Between any two steps of whatever it does."""
        bus, task = self._services.pop(1)
        task.cancel()
        await bus.close()
        await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        for worker in self.workers.values():
            await worker.vanish(crashed=True)
        while len(self._services) > 1:
            await self.kill_allocator()
        self._services[0][1].cancel()
        await asyncio.gather(self._services[0][1], return_exceptions=True)
        await self.bus.close()

    def lost(self) -> dict[str, Counter[str | None]]:
        """By token, how often its loss was told under each message id."""
        told: dict[str, Counter[str | None]] = {}
        for envelope in self.broker.dead_letters(LOSSES):
            token = ReplicaLost.model_validate_json(envelope.body).token
            told.setdefault(token, Counter())[envelope.message_id] += 1
        return told

    def runs(self) -> Counter[str]:
        """Bytes by GPU that replicas take."""
        return sum((worker.used() for worker in self.workers.values()), Counter[str]())


@asynccontextmanager
async def started(redis_url: str, seed: int) -> AsyncIterator[Cluster]:
    cluster = Cluster(redis_url, random.Random(seed))
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


async def use(cluster: Cluster, number: int, keeps: bool, spread_s: float = STORM_S) -> None:
    """Deploy, and release after a while."""
    chance = cluster.chance
    await asyncio.sleep(chance.random() * spread_s * 0.7)
    stage = memory(layer=chance.randint(1, 8), first=chance.randint(0, 9), last=chance.randint(0, 9), runtime=2)
    candidates = [candidate(pp=pp, stage=stage) for pp in chance.sample((1, 2, 3, 4), 2)]
    plan = computed(*candidates, replicas=chance.randint(1, 2), deployment_id=UUID(int=number + 1))
    await cluster.bus.publish(plan)
    if not keeps:
        await asyncio.sleep(chance.random() * spread_s * 0.3)
        await cluster.bus.publish(ReleaseAccepted(deployment_id=plan.deployment_id))


async def harm(cluster: Cluster, worker: ScriptedWorker, over: asyncio.Event) -> None:
    """Crash and come back; or be out of reach, for less than the grace period or for longer, and come back late."""
    chance = cluster.chance
    while not over.is_set():
        await asyncio.sleep(0.5 + chance.random() * STORM_S * 0.3)
        crashed = chance.random() < 0.5
        await worker.vanish(crashed=crashed)
        await asyncio.sleep(chance.choice((0.02, 0.5, 2 * GRACE_S)))
        await worker.connect(anew=crashed)


async def storm(cluster: Cluster) -> None:
    over = asyncio.Event()
    harms = [asyncio.create_task(harm(cluster, worker, over)) for worker in cluster.workers.values()]
    users = [asyncio.create_task(use(cluster, number, number % 5 == 0)) for number in range(NUM_DEPLOYMENTS)]
    for _ in range(4):
        await asyncio.sleep(STORM_S / 5)
        await cluster.kill_allocator()
        cluster.start_allocator()
    await asyncio.gather(*users)
    over.set()
    await asyncio.gather(*harms)


async def until(wrong: Callable[[], Awaitable[str]]) -> None:
    """Until nothing is."""
    end = time.monotonic() + PATIENCE_S
    while left := await wrong():
        if time.monotonic() > end:
            pytest.fail(f"after {PATIENCE_S} s: {left}")
        await asyncio.sleep(0.1)


async def differs(cluster: Cluster, watchman: Watchman) -> str:
    """Looked at twice, for messages may be under way."""
    for _ in range(2):
        await asyncio.sleep(0.3)
        held = {field for fields in watchman.held.values() for field in fields}
        runs = {f"{gpu}|{token}" for worker in cluster.workers.values() for gpu, token in worker.taken()}
        if watchman.sums() != cluster.runs():
            return f"held and not running: {held - runs}; running and not held: {runs - held}"
    return ""


@pytest.mark.parametrize("seed", [1])
async def test_what_is_reserved_is_what_runs_and_no_gpu_is_ever_over_its_size(redis_url: str, seed: int) -> None:
    redis: Any = Redis.from_url(redis_url, decode_responses=True)
    async with Watchman(redis_url, TOTALS) as watchman, started(redis_url, seed) as cluster:

        async def is_left() -> str:
            left = [*await leaked(redis), *cluster.runs()]
            return ", ".join(left)

        await storm(cluster)
        await until(lambda: differs(cluster, watchman))
        told = cluster.lost()
        assert told and all(len(ids) == 1 for ids in told.values())
        for number in range(0, NUM_DEPLOYMENTS, 5):
            await cluster.bus.publish(ReleaseAccepted(deployment_id=UUID(int=number + 1)))
        await until(is_left)
    assert watchman.over == []
    assert watchman.num_writes > NUM_DEPLOYMENTS / 4  # it watched: many are released before there is room for them
    await redis.aclose()


async def test_redis_emptied_under_load_is_rebuilt_from_what_runs(redis_url: str) -> None:
    redis: Any = Redis.from_url(redis_url, decode_responses=True)
    async with Watchman(redis_url, TOTALS) as watchman, started(redis_url, 1) as cluster:
        users = [asyncio.create_task(use(cluster, number, number % 2 == 0, spread_s=2.0)) for number in range(60)]
        await asyncio.sleep(1.5)
        await redis.flushall()
        await asyncio.gather(*users)
        await until(lambda: differs(cluster, watchman))
        assert cluster.heard[PlacementReserved] > 0
        kept = watchman.sums()
        assert kept
        for number in range(60):  # some a second time: theirs may have come to a Redis that knew nothing of them
            await cluster.bus.publish(ReleaseAccepted(deployment_id=UUID(int=number + 1)))

        async def is_left() -> str:
            return ", ".join([*cluster.runs(), *watchman.sums()])

        await until(is_left)
    assert watchman.over == []
    await redis.aclose()


async def leaked(redis: Any) -> list[str]:
    """Keys that hold something for a deployment, and records that do not end."""
    found = [key async for key in redis.scan_iter("maveriq:allocator:node:*:held")]
    found += [key async for key in redis.scan_iter("maveriq:allocator:node:*:strange")]
    found += [key async for key in redis.scan_iter("maveriq:allocator:node:*:missing")]
    found += [key async for key in redis.scan_iter("maveriq:allocator:tenant:*")]
    found += [key async for key in redis.scan_iter("maveriq:allocator:line")]
    endless = [key async for key in redis.scan_iter("maveriq:allocator:deployment:*") if await redis.ttl(key) < 0]
    return [*found, *endless]
