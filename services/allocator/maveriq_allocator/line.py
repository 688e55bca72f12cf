"""The line of deployments that wait for memory, in Redis. Keys: see `keys`.

A deployment's record says whether it waits; the line only names those that may, in order. It is joined after the record
says so and left only while the record has the version that said otherwise, so a waiter is never missing for long: what
was to join and died is handed out again.
"""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from maveriq.contracts import Priority
from maveriq_allocator import keys
from maveriq_allocator.store import Store
from maveriq_allocator.waiting import Claim, place_in_line

SURVEY_S = 10  # a survey that takes longer, or whose allocator died, is another's to do again
_FIRST_MS = 1e13  # more than any time in ms: priority counts first


class Line:
    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._leave = redis.register_script(Path(__file__).with_name("leave.lua").read_text())
        self._surveyed = redis.register_script(Path(__file__).with_name("surveyed.lua").read_text())

    async def now(self) -> datetime:
        seconds, microseconds = await self._redis.time()
        return datetime.fromtimestamp(int(seconds), UTC).replace(microsecond=int(microseconds))

    async def join(self, deployment_id: UUID, priority: Priority, since: datetime) -> None:
        rank, since = place_in_line(priority, since)
        score = rank * _FIRST_MS + since.timestamp() * 1000
        await self._redis.zadd(keys.LINE, {str(deployment_id): score})

    async def leave(self, deployment_id: UUID, version: int) -> None:
        """Unless its record has changed since that version."""
        touched = [keys.LINE, keys.CLAIM, keys.deployment(deployment_id)]
        await self._leave(touched, [str(deployment_id), str(version)])

    async def waiters(self) -> list[UUID]:
        """In order."""
        return [UUID(text) for text in await self._redis.zrange(keys.LINE, 0, -1)]

    async def is_empty(self) -> bool:
        return not await self._redis.exists(keys.LINE)

    async def claim(self) -> Claim | None:
        found = await self._redis.hgetall(keys.CLAIM)
        if not found:
            return None
        since = datetime.fromisoformat(found["since"])
        gpus = frozenset(found["gpus"].split("\n")) - {""}
        return Claim(UUID(found["deployment"]), (int(found["rank"]), since), gpus)

    async def keep_claim(self, claim: Claim | None) -> None:
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(keys.CLAIM)
            if claim is not None:
                rank, since = claim.place
                facts = {
                    "deployment": str(claim.deployment_id), "rank": rank, "since": since.isoformat(),
                    "gpus": "\n".join(sorted(claim.gpus)),
                }  # fmt: skip
                pipeline.hset(keys.CLAIM, mapping=facts)
            await pipeline.execute()

    async def begin_survey(self) -> str | None:
        """Say that memory came back; the news so far where nobody surveys the line, else None: they will see it."""
        news = await self._redis.incr(keys.LINE_NEWS)
        return str(news) if await self._redis.set(keys.LINE_SURVEY, "1", nx=True, ex=SURVEY_S) else None

    async def end_survey(self, seen: str) -> str | None:
        """None: done; else memory came back meanwhile: the news to survey again for."""
        news = await self._surveyed([keys.LINE_NEWS, keys.LINE_SURVEY], [seen])
        return str(news) if news else None
