"""What each node last said it has, in Redis: one hash, node -> InventoryChanged and when it was heard."""

from dataclasses import dataclass
from datetime import datetime

from redis.asyncio import Redis

from maveriq.contracts import InventoryChanged, Value

KEY = "ingress:inventory"


class Heard(Value):
    inventory: InventoryChanged
    heard_at: datetime


@dataclass(frozen=True, slots=True)
class Inventories:
    redis: Redis

    async def keep(self, inventory: InventoryChanged, now: datetime) -> None:
        heard = Heard(inventory=inventory, heard_at=now)
        await self.redis.hset(KEY, inventory.node, heard.model_dump_json())

    async def all(self) -> list[Heard]:
        """In order of the nodes' names."""
        found = await self.redis.hgetall(KEY)
        heard = (Heard.model_validate_json(text) for text in found.values())
        return sorted(heard, key=lambda one: one.inventory.node)
