"""What each node last said it has, in Redis: one hash, node -> InventoryChanged and when it was heard."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from maveriq.contracts import InventoryChanged, Value

KEY = "maveriq:ingress:inventory"
FORGET_AFTER = timedelta(days=1)  # a node that was silent for longer is not coming back; allocators forget it too


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
        """In order of the nodes' names. What has been silent for long is forgotten."""
        found = await self.redis.hgetall(KEY)
        heard = [Heard.model_validate_json(text) for text in found.values()]
        now = datetime.now(UTC)
        gone = {one.inventory.node for one in heard if one.inventory.silent and now - one.heard_at > FORGET_AFTER}
        if gone:
            await self.redis.hdel(KEY, *gone)
        return sorted((one for one in heard if one.inventory.node not in gone), key=lambda one: one.inventory.node)
