"""Two allocators on one Redis while messages come twice, in any order, and allocators die between any two calls."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    DeploymentKept,
    DeploymentReleased,
    Message,
    NodeStarted,
    PlacementReserved,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq_allocator import keys
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.placing import Overtaken
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import Store, connect
from tests.unit.allocator.plans import candidate, computed, memory, reported

TOTALS = {"a": (200, 120, 60), "b": (160, 160), "c": (90,)}


class Killed(Exception):
    """The allocator died here."""


class MortalStore:
    """A store whose user dies now and then, just before a call or just after it."""

    def __init__(self, store: Store, chance: random.Random, mortality: float) -> None:
        self._store, self._chance, self._mortality = store, chance, mortality

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        return self._mortal(self._store.register_script(script))

    def pipeline(self, **options: bool) -> Any:
        pipeline = self._store.pipeline(**options)
        pipeline.execute = self._mortal(pipeline.execute)
        return pipeline

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return self._mortal(getattr(self._store, name))

    def _mortal(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(*args: object, **options: object) -> Any:
            if self._chance.random() < self._mortality:
                raise Killed
            answer = await call(*args, **options)
            if self._chance.random() < self._mortality:
                raise Killed
            return answer

        return run


class Workers:
    """Every node's worker: runs what it is told to, fails now and then, remembers nothing across a restart."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.failing = 0.3
        self.running: dict[str, str] = {}

    def hear(self, message: Message) -> list[Message]:
        if isinstance(message, PlacementReserved):
            at = message.placement
            fate = {"deployment_id": message.deployment_id, "replica": at.replica, "token": at.token, "node": at.node}
            if at.token not in self.running and self._chance.random() < self.failing:
                return [ReplicaFailed(**fate, detail="it did not start")]
            self.running[at.token] = at.node
            return [ReplicaReady(**fate, load_s=1)]
        if isinstance(message, DeploymentDraining):
            self.running.pop(message.token, None)
            return [ReplicaStopped(**message.model_dump())]
        return []

    def crash(self) -> list[Message]:
        """An engine dies, or a node restarts."""
        if not self.running or self._chance.random() < 0.5:
            node = self._chance.choice(sorted(TOTALS))
            self.running = {token: at for token, at in self.running.items() if at != node}
            return [NodeStarted(node=node)]
        token = self._chance.choice(sorted(self.running))
        node = self.running.pop(token)
        deployment_id, replica, _ = token.split(".")
        return [
            ReplicaFailed(
                deployment_id=UUID(deployment_id), replica=int(replica), token=token, node=node, detail="died"
            )
        ]


class Cluster:
    """A broker that delivers at least once, in any order, to two allocators and the workers."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.chance, self.workers = chance, Workers(chance)
        self.waiting: list[Message] = []
        self.resting: list[Message] = []
        """Copies of records: one of them comes round now and then."""
        self.ends: dict[UUID, set[type[Message]]] = {}
        self.mortality, self.repeats = 0.02, 0.2
        self._store = store

    def allocator(self) -> dict[type[Message], Callable[[Any], Awaitable[Any]]]:
        store = MortalStore(self._store, self.chance, self.mortality)
        return {h.message: h.run for h in bound(wire(store, Settings("redis://", 60.0)))}

    async def step(self) -> None:
        """Up to six messages at once."""
        self.resting += [message for message in self.waiting if isinstance(message, DeploymentKept)]
        self.waiting = [message for message in self.waiting if not isinstance(message, DeploymentKept)]
        self.chance.shuffle(self.waiting)
        if self.resting and self.chance.random() < 0.1:
            self.waiting.insert(0, self.resting.pop(self.chance.randrange(len(self.resting))))
        now, self.waiting = self.waiting[:6], self.waiting[6:]
        await asyncio.gather(*(self._deliver(message) for message in now))

    async def _deliver(self, message: Message) -> None:
        if isinstance(message, PlacementReserved | DeploymentDraining):
            self.waiting += self.workers.hear(message)
        elif isinstance(message, DeploymentFailed | DeploymentReleased):
            self.ends.setdefault(message.deployment_id, set()).add(type(message))
        elif type(message) in (handlers := self.allocator()):
            try:
                self.waiting += await handlers[type(message)](message)
            except (Killed, Overtaken):
                self.waiting.append(message)
        if self.chance.random() < self.repeats:
            self.waiting.append(message)

    async def settle(self) -> None:
        """Until nothing waits; nobody dies and nothing repeats any more."""
        self.mortality, self.repeats, self.workers.failing = 0.0, 0.0, 0.0
        for _ in range(2000):
            if not self.waiting:
                return
            await self.step()
        raise AssertionError(f"messages go round: {Counter(m.topic for m in self.waiting)}")


async def held_by_records(store: Store) -> Counter[str]:
    """What all deployments hold together, by GPU."""
    total: Counter[str] = Counter()
    async for key in store.scan_iter(keys.deployment(UUID(int=0)).replace(str(UUID(int=0)), "*")):
        record = (await Reservations(store).load(UUID(key.rpartition(":")[2]))).record
        for held in record.held:
            for stage in held.placement.stages:
                total.update(dict.fromkeys(stage.gpus, stage.reserved_bytes))
    return total


async def check(store: Store) -> None:
    """The sum of the records is what the nodes say is held, and no GPU holds more than it has."""
    told: Counter[str] = Counter()
    for node in await Inventory(store).snapshot():
        for state in node.gpus:
            held = sum(holding.bytes for holding in state.holdings)
            assert held <= state.gpu.total_bytes - state.gpu.foreign_bytes
            told[state.gpu.id] += held
            kept = await store.hget(keys.node(node.name), f"sum|{state.gpu.id}")
            assert kept is None or int(kept) == held
    assert +told == await held_by_records(store)


def some_plan(chance: random.Random, number: int) -> PlanComputed:
    """A few candidates of 8 layers, on one to three GPUs."""
    candidates = [
        candidate(
            pp=chance.randint(1, 3),
            stage=memory(
                layer=chance.randint(2, 9), first=chance.randint(0, 20), last=chance.randint(0, 20), runtime=3
            ),
        )
        for _ in range(chance.randint(1, 5))
    ]
    return computed(*candidates, replicas=chance.randint(1, 3), deployment_id=UUID(int=number + 1))


@pytest.mark.parametrize("seed", range(15))
async def test_whatever_is_repeated_reordered_or_killed_nothing_is_held_twice_or_leaked(
    redis_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    store = connect(redis_url)
    cluster = Cluster(store, chance)
    for name, totals in TOTALS.items():
        await Inventory(store).report(reported(name, *totals))
    plans = [some_plan(chance, number) for number in range(8)]
    for plan in plans:
        cluster.waiting.append(plan)
        for _ in range(4):
            await cluster.step()
        await check(store)
        if chance.random() < 0.6:
            cluster.waiting.append(ReleaseAccepted(deployment_id=chance.choice(plans).deployment_id))
        if chance.random() < 0.5:
            cluster.waiting += cluster.workers.crash()
    cluster.waiting += [ReleaseAccepted(deployment_id=plan.deployment_id) for plan in plans]
    await cluster.settle()
    await check(store)
    assert await held_by_records(store) == Counter()
    assert cluster.workers.running == {}
    assert set(cluster.ends) == {plan.deployment_id for plan in plans}
    await store.aclose()


async def test_of_deployments_planned_at_once_as_many_are_placed_as_fit(redis_url: str) -> None:
    """Every one sees room in its snapshot; whoever is refused looks again."""
    store = connect(redis_url)
    for name in ("a", "b", "c"):
        await Inventory(store).report(reported(name, 200, 200))
    cluster = Cluster(store, random.Random(1))
    cluster.mortality = 0.0
    plans = [computed(candidate(pp=2), deployment_id=UUID(int=number + 1), max_wait_s=0) for number in range(20)]
    answers = await asyncio.gather(*(cluster.allocator()[PlanComputed](plan) for plan in plans))
    kinds = Counter(type(message) for answer in answers for message in answer)
    assert kinds[PlacementReserved] == 15  # 3 nodes x 5 x (40 + 40)
    assert kinds[DeploymentFailed] == 5
    await check(store)
    await store.aclose()


async def test_a_plan_handled_by_two_allocators_at_once_is_placed_once(redis_url: str) -> None:
    store = connect(redis_url)
    await Inventory(store).report(reported("a", 1000))
    cluster = Cluster(store, random.Random(1))
    cluster.mortality = 0.0
    answers = await asyncio.gather(*(cluster.allocator()[PlanComputed](computed(replicas=2)) for _ in range(6)))
    orders = [[m for m in answer if isinstance(m, PlacementReserved)] for answer in answers]
    assert all(order == orders[0] for order in orders)
    assert await held_by_records(store) == {"a/0": 160}
    await store.aclose()
