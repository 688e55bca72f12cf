"""Which rigs measure, in Redis: each profiler says every few seconds that it is there.

maveriq:profiler:rigs          set of the names of rigs that were ever heard of
maveriq:profiler:rig:<name>    the rig, as JSON; it expires unless said again, so a rig that left is not waited for
"""

import asyncio
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from maveriq_profiler.rig_seen import RigSeen

_NAMES = "maveriq:profiler:rigs"


class Rigs:
    def __init__(self, redis: Any, *, alive_s: float = 60.0) -> None:
        """
        Args:
            redis: a `redis.asyncio.Redis`.
            alive_s: a rig not heard of for so long has left.
        """
        self._redis = redis
        self._alive_s = alive_s

    async def say(self, rig: RigSeen) -> None:
        await self._redis.set(_key(rig.name), rig.model_dump_json(), px=int(self._alive_s * 1e3))
        await self._redis.sadd(_NAMES, rig.name)

    async def keep_saying(self, rig: RigSeen) -> None:
        """Until cancelled; a store that is away for a while hears it when it is back."""
        while True:
            with suppress(RedisError):
                await self.say(rig)
            await asyncio.sleep(self._alive_s / 4)

    async def present(self) -> tuple[RigSeen, ...]:
        """Those that are there now, by name."""
        names = sorted(_text(name) for name in await self._redis.smembers(_NAMES))
        keys = [_key(name) for name in names]
        stored: list[bytes | str | None] = await self._redis.mget(keys) if keys else []
        return tuple(RigSeen.model_validate_json(text) for text in stored if text is not None)


def _key(name: str) -> str:
    return f"maveriq:profiler:rig:{name}"


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
