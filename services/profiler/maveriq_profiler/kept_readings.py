"""What local sources' configs said, in Redis: reading one takes seconds, and each start of a profiler would again.

maveriq:profiler:readings:<digest of the code that reads>   hash: source and when it was changed -> Reading. Goes a
month after the last
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import maveriq
import maveriq_profiler
from maveriq_profiler.orders import Reading

_KEEP_S = 30 * 24 * 3600


class KeptReadings:
    def __init__(self, redis: Any) -> None:
        """Args: redis: a `redis.asyncio.Redis`."""
        self._redis = redis
        self.key = f"maveriq:profiler:readings:{_digest()}"

    async def get(self, source: str, changed_ns: int) -> Reading | None:
        text = await self._redis.hget(self.key, f"{changed_ns}|{source}")
        return None if text is None else Reading.model_validate_json(text)

    async def keep(self, source: str, changed_ns: int, reading: Reading) -> None:
        await self._redis.hset(self.key, f"{changed_ns}|{source}", reading.model_dump_json())
        await self._redis.expire(self.key, _KEEP_S)


def _digest() -> str:
    """Of our code and transformers' version: what another read may not be what this one would."""
    told = hashlib.sha256(version("transformers").encode())
    for package in (maveriq, maveriq_profiler):
        for file in sorted(Path(package.__file__ or "").parent.rglob("*.py")):
            told.update(file.read_bytes())
    return told.hexdigest()[:16]
