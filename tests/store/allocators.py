"""Allocators fed by hand on a real Redis, whose silence and time are made up."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from maveriq.bus.handling import decode, replies
from maveriq.contracts import (
    DeploymentDraining,
    Message,
    NodeReported,
    PlacementReserved,
    ReplicaReady,
    ReplicaStopped,
    Running,
    SweepDue,
)
from maveriq.topology import ALLOCATOR
from maveriq_allocator import keys
from maveriq_allocator.__main__ import bound, wire
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import Store, connect
from tests.unit.allocator.plans import reported

GRACE_S = 60.0
M = TypeVar("M", bound=Message)


class Allocators:
    """Several on one store: each message goes to any of them, through the JSON that the broker would carry."""

    def __init__(self, redis_url: str, number: int = 2, **settings: Any) -> None:
        self.redis: Store = connect(redis_url)
        given = Settings(redis_url, 60.0, grace_s=GRACE_S, **settings)
        self._each = [{h.message: h for h in bound(wire(self.redis, given))} for _ in range(number)]
        self._chance = random.Random(1)

    async def tell(self, message: Message) -> list[Message]:
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        returned = replies(ALLOCATOR, await self._chance.choice(self._each)[type(message)].run(cause))
        return [decode(type(reply), reply.topic, reply.model_dump_json().encode()) for reply in returned]

    async def everyone(self, message: Message) -> list[Message]:
        """All of them are told the same, one after the other."""
        answers = [replies(ALLOCATOR, await handlers[type(message)].run(message)) for handlers in self._each]
        return [reply for answer in answers for reply in answer]

    async def listen(self, seconds: float) -> None:
        """So long they listen, and hear what is not told to them here from nobody."""
        await self.tell(SweepDue())
        await self.redis.hincrby(keys.WATCH, "listened_ms", round(seconds * 1e3))

    async def held(self) -> dict[str, int]:
        """Bytes by GPU, read from the fields themselves."""
        found: dict[str, int] = {}
        async for key in self.redis.scan_iter("maveriq:allocator:node:*:held"):
            for field, num_bytes in (await self.redis.hgetall(key)).items():
                gpu = field.rpartition("|")[0]
                found[gpu] = found.get(gpu, 0) + int(num_bytes)
        return found


def of_type(kind: type[M], messages: Sequence[Message]) -> list[M]:
    return [message for message in messages if isinstance(message, kind)]


def report(name: str, *total_bytes: int, running: Sequence[PlacementReserved] = (), number: int = 1) -> NodeReported:
    """What a worker says that runs these."""
    told = tuple(
        Running(
            deployment_id=order.deployment_id, replica=order.placement.replica, token=order.placement.token,
            stages=order.placement.stages,
        )
        for order in running
    )  # fmt: skip
    return reported(name, *total_bytes).model_copy(update={"running": told, "number": number})


def ready(order: PlacementReserved) -> ReplicaReady:
    at = order.placement
    return ReplicaReady(deployment_id=order.deployment_id, replica=at.replica, token=at.token, node=at.node, load_s=1)


def stopped(order: DeploymentDraining) -> ReplicaStopped:
    return ReplicaStopped(**order.model_dump(exclude={"goes_on"}))
