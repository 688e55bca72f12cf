"""Ingress shows what nodes last said, and forgets those that fell silent for good."""

from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from maveriq.contracts import InventoryChanged
from maveriq_ingress.inventory import FORGET_AFTER, KEY, Inventories


async def test_only_a_node_that_was_silent_for_a_day_is_forgotten(redis_url: str) -> None:
    now = datetime.now(UTC)
    long_ago = now - FORGET_AFTER - timedelta(seconds=1)
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        inventories = Inventories(redis)
        for name, silent, heard_at in (("gone", True, long_ago), ("late", True, now), ("old", False, long_ago)):
            await inventories.keep(InventoryChanged(node=name, engine="torch", gpus=(), silent=silent), heard_at)
        assert [one.inventory.node for one in await inventories.all()] == ["late", "old"]
        assert sorted(await redis.hkeys(KEY)) == ["late", "old"]
