"""What was measured and served on each GPU type, and its calibration, in Redis.

Keys, all below `maveriq:profiler:`; a pool is named by `Pool.name`:
calibration-measured:<pool>    hash: key -> Outcome; a key names a run of the programme, or a fingerprint
calibration-served:<pool>      hash: kind -> folding.Served
calibration-run:<pool>         hash: calibration_id, budget_s, spent_s, ended ('1')
calibration-wanted:<pool>      set of the quantised precisions that were asked for: the programme has them from then on
calibration-fitted:<pool>      hash: version; calibration, as JSON
calibration-pools              set of the pools that have a calibration
calibration-refit:<pool>       there while no further fit is to be made
calibration-claim:<pool>|<key>   token of the profiler that measures now; it expires unless renewed
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid4

from maveriq.contracts import Calibration, Precision, RunSample
from maveriq_profiler.catalog import RELEASE, RENEW
from maveriq_profiler.folding import Served, mixed
from maveriq_profiler.pool import Outcome, Pool

MAX_KINDS = 512  # of served passes kept for a pool: a fit of so many samples takes less than a second
_FINGERPRINT = "fingerprint|"
_POOLS = "maveriq:profiler:calibration-pools"

_KEEP = """
if (redis.call('hget', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[1], 'version', ARGV[2], 'calibration', ARGV[3])
redis.call('sadd', KEYS[2], ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A calibration under way, or the last one."""

    calibration_id: UUID
    budget_s: float
    spent_s: float
    ended: bool


class Samples:
    def __init__(self, redis: Any, *, claim_s: float = 15.0) -> None:
        """
        Args:
            redis: a `redis.asyncio.Redis`.
            claim_s: a measuring profiler that is not heard of for so long is taken for dead.
        """
        self._redis = redis
        self._claim_ms = int(claim_s * 1e3)

    async def begin(self, pool: Pool, calibration_id: UUID, budget_s: float) -> None:
        """A new run takes the place of the one before; what failed is tried again."""
        for key, outcome in (await self.outcomes(pool)).items():
            if outcome.problem:
                await self._redis.hdel(_key("measured", pool.name), key)
        fields = {"calibration_id": str(calibration_id), "budget_s": str(budget_s), "spent_s": "0", "ended": ""}
        await self._redis.hset(_key("run", pool.name), mapping=fields)

    async def run(self, pool: Pool) -> Run | None:
        found = await self._texts(_key("run", pool.name))
        if "calibration_id" not in found:
            return None
        return Run(
            UUID(found["calibration_id"]), float(found["budget_s"]), float(found["spent_s"]), found["ended"] == "1"
        )

    async def want(self, pool: Pool, precisions: Collection[Precision]) -> None:
        if precisions:
            await self._redis.sadd(_key("wanted", pool.name), *(str(precision) for precision in precisions))

    async def wanted(self, pool: Pool) -> set[Precision]:
        """What `want` was told at any time."""
        return {Precision(_text(name)) for name in await self._redis.smembers(_key("wanted", pool.name))}

    async def end(self, pool: Pool, calibration_id: UUID) -> None:
        """Unless another has taken its place."""
        now = await self.run(pool)
        if now is not None and now.calibration_id == calibration_id:
            await self._redis.hset(_key("run", pool.name), "ended", "1")

    async def outcomes(self, pool: Pool) -> dict[str, Outcome]:
        """Of all runs and fingerprints, by key."""
        found = await self._texts(_key("measured", pool.name))
        return {key: Outcome.model_validate_json(text) for key, text in found.items()}

    async def keep_outcome(self, pool: Pool, key: str, outcome: Outcome) -> None:
        """The first kept counts, should two have measured after all."""
        if await self._redis.hsetnx(_key("measured", pool.name), key, outcome.model_dump_json()):
            await self._redis.hincrbyfloat(_key("run", pool.name), "spent_s", outcome.cost_s)

    async def replace_outcome(self, pool: Pool, key: str, outcome: Outcome) -> None:
        """Measured again: what it cost is no run's."""
        await self._redis.hset(_key("measured", pool.name), key, outcome.model_dump_json())

    async def keep_fingerprint(self, pool: Pool, key: str, samples: tuple[RunSample, ...], cost_s: float) -> None:
        """Of one that was measured twice the one that the catalogue has."""
        outcome = Outcome(samples=samples, cost_s=cost_s)
        await self._redis.hset(_key("measured", pool.name), f"{_FINGERPRINT}{key}", outcome.model_dump_json())

    @asynccontextmanager
    async def claimed(self, pool: Pool, key: str, *, again: bool = False) -> AsyncGenerator[bool, None]:
        """Whether the run is ours to measure: nobody else measures it now, and nobody has, or it is due again."""
        name, token = _key("claim", f"{pool.name}|{key}"), uuid4().hex
        if not await self._redis.set(name, token, nx=True, px=self._claim_ms):
            yield False
            return
        renewing = asyncio.create_task(self._renew(name, token))
        try:
            yield again or not await self._redis.hexists(_key("measured", pool.name), key)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await asyncio.shield(self._redis.eval(RELEASE, 1, name, token))

    async def _renew(self, name: str, token: str) -> None:
        while True:
            await asyncio.sleep(self._claim_ms / 3e3)
            await self._redis.eval(RENEW, 1, name, token, self._claim_ms)

    async def fold_in(self, pool: Pool, news: Mapping[str, Served]) -> None:
        """Two at once may lose the weight of one report, which is one of many."""
        for kind, new in news.items():
            text = await self._redis.hget(_key("served", pool.name), kind)
            folded = new if text is None else mixed(Served.model_validate_json(text), new)
            await self._redis.hset(_key("served", pool.name), kind, folded.model_dump_json())
        if await self._redis.hlen(_key("served", pool.name)) > MAX_KINDS:
            kinds = await self.served(pool)
            oldest = sorted(kinds, key=lambda kind: kinds[kind].last_seen)[: len(kinds) - MAX_KINDS]
            await self._redis.hdel(_key("served", pool.name), *oldest)

    async def served(self, pool: Pool) -> dict[str, Served]:
        found = await self._texts(_key("served", pool.name))
        return {kind: Served.model_validate_json(text) for kind, text in found.items()}

    async def calibration(self, pool: Pool) -> Calibration | None:
        text = await self._redis.hget(_key("fitted", pool.name), "calibration")
        return None if text is None else Calibration.model_validate_json(text)

    async def calibrations(self) -> tuple[Calibration, ...]:
        """Of every engine and GPU type the latest fitted: an older engine version's says nothing of what runs now."""
        latest: dict[tuple[str, str], Calibration] = {}
        for name in await self._redis.smembers(_POOLS):
            text = await self._redis.hget(_key("fitted", _text(name)), "calibration")
            if text is not None:
                one = Calibration.model_validate_json(text)
                known = latest.get((one.engine, one.gpu_type))
                if known is None or one.fitted_at > known.fitted_at:
                    latest[one.engine, one.gpu_type] = one
        return tuple(latest[kind] for kind in sorted(latest))

    async def keep_calibration(self, pool: Pool, calibration: Calibration) -> bool:
        """False: another was kept meanwhile under this version."""
        touched = [_key("fitted", pool.name), _POOLS]
        before, text = calibration.version - 1, calibration.model_dump_json()
        return bool(
            await self._redis.eval(_KEEP, len(touched), *touched, str(before), calibration.version, text, pool.name)
        )

    async def may_refit(self, pool: Pool, every_s: float) -> bool:
        """True at most once in so long, of all profilers."""
        return bool(await self._redis.set(_key("refit", pool.name), "1", nx=True, px=int(every_s * 1e3)))

    async def _texts(self, key: str) -> dict[str, str]:
        found = cast("dict[Any, Any]", await self._redis.hgetall(key))
        return {_text(name): _text(value) for name, value in found.items()}


def is_fingerprint(key: str) -> bool:
    """Whether an outcome is of a fingerprint, rather than of the programme."""
    return key.startswith(_FINGERPRINT)


def _key(what: str, name: str) -> str:
    return f"maveriq:profiler:calibration-{what}:{name}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
