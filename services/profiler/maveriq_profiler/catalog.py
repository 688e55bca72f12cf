"""Fingerprints in Redis: each is measured once, by whichever profiler gets there first.

Keys, below `maveriq:profiler:`:
fingerprints:<shape key>            hash: field -> Entry; a field names all that a fingerprint depends on
fingerprint-claim:<shape key>:<field>   token of the profiler that measures now; it expires unless renewed, so a
                                    profiler killed in the middle keeps nobody waiting for long
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import structlog

from maveriq.contracts import Fingerprint, Precision, Value
from maveriq_profiler.formats import Format
from maveriq_profiler.pool import Pool

log = structlog.get_logger()

RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class Key:
    """All that a fingerprint depends on."""

    shape_key: str
    engine: str
    engine_version: str
    gpu_type: str
    precision: Precision
    kv_precision: Precision

    @classmethod
    def of(cls, shape_key: str, pool: Pool, measured: Format) -> "Key":
        one, wanted = pool, measured
        return cls(shape_key, one.engine, one.engine_version, one.gpu_type, wanted.precision, wanted.kv_precision)

    @property
    def named(self) -> str:
        return f"{self.shape_key}|{self.field}"

    @property
    def field(self) -> str:
        return "|".join((self.engine, self.engine_version, self.gpu_type, self.precision, self.kv_precision))


class Entry(Value):
    """A fingerprint as stored."""

    fingerprint: Fingerprint
    measured_at: datetime


class Catalog:
    def __init__(self, redis: Any, *, claim_s: float = 15.0, poll_s: float = 0.5) -> None:
        """
        Args:
            redis: a `redis.asyncio.Redis`.
            claim_s: a measuring profiler that is not heard of for so long is taken for dead.
            poll_s: how often one that waits looks for the other's result.
        """
        self._redis = redis
        self._claim_s = claim_s
        self._poll_s = poll_s

    async def of_shape(self, shape_key: str) -> tuple[Fingerprint, ...]:
        """Of every GPU type and engine; of each only the latest measured."""
        stored = cast("dict[Any, bytes | str]", await self._redis.hgetall(_shape(shape_key)))
        return latest(Entry.model_validate_json(text) for text in stored.values())

    async def get(self, key: Key) -> Fingerprint | None:
        text = await self._redis.hget(_shape(key.shape_key), key.field)
        return None if text is None else Entry.model_validate_json(text).fingerprint

    async def get_or_measure(self, key: Key, measure: Callable[[], Awaitable[Fingerprint]]) -> Fingerprint:
        """What is known, or what `measure` finds, or what another profiler that measures it now finds.

        Raises whatever `measure` raises; the next to ask then tries again.
        """
        told = False
        while True:
            found = await self.get(key)
            if found is not None:
                return found
            token = uuid4().hex
            if await self._redis.set(_claim(key), token, nx=True, px=self._claim_ms):
                async with self._claimed(key, token):
                    # another may have finished between our look and our claim
                    return await self.get(key) or await self._keep(key, await measure())
            if not told:
                log.info("waiting for another profiler", fingerprint=key.field)
                told = True
            await asyncio.sleep(self._poll_s)

    async def measure_again(self, key: Key, measure: Callable[[], Awaitable[Fingerprint]]) -> Fingerprint | None:
        """What is known from now on: of the two what others disturbed less. None: another profiler measures it now.

        Raises whatever `measure` raises.
        """
        token = uuid4().hex
        if not await self._redis.set(_claim(key), token, nx=True, px=self._claim_ms):
            return None
        async with self._claimed(key, token):
            before, found = await self.get(key), await measure()
            if before is not None and before.others <= found.others:
                return before
            entry = Entry(fingerprint=found, measured_at=datetime.now(UTC))
            await self._redis.hset(_shape(key.shape_key), key.field, entry.model_dump_json())
            return found

    async def _keep(self, key: Key, fingerprint: Fingerprint) -> Fingerprint:
        """Store it; the first stored counts, should two have measured after all (one was stopped for a while)."""
        entry = Entry(fingerprint=fingerprint, measured_at=datetime.now(UTC))
        await self._redis.hsetnx(_shape(key.shape_key), key.field, entry.model_dump_json())
        return await self.get(key) or fingerprint

    @asynccontextmanager
    async def _claimed(self, key: Key, token: str) -> AsyncGenerator[None, None]:
        renewing = asyncio.create_task(self._renew(key, token))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await asyncio.shield(self._redis.eval(RELEASE, 1, _claim(key), token))

    async def _renew(self, key: Key, token: str) -> None:
        while True:
            await asyncio.sleep(self._claim_s / 3)
            await self._redis.eval(RENEW, 1, _claim(key), token, self._claim_ms)

    @property
    def _claim_ms(self) -> int:
        return int(self._claim_s * 1e3)


def latest(entries: Iterable[Entry]) -> tuple[Fingerprint, ...]:
    """One for each engine, GPU type and precision: an older engine version's says nothing of what runs now."""
    newest: dict[tuple[str, ...], Entry] = {}
    for entry in entries:
        one = entry.fingerprint
        kind = (one.engine, one.gpu_type, one.precision, one.kv_precision)
        if kind not in newest or entry.measured_at > newest[kind].measured_at:
            newest[kind] = entry
    return tuple(newest[kind].fingerprint for kind in sorted(newest))


def _shape(shape_key: str) -> str:
    return f"maveriq:profiler:fingerprints:{shape_key}"


def _claim(key: Key) -> str:
    return f"maveriq:profiler:fingerprint-claim:{key.shape_key}:{key.field}"
