"""The deployments' records, in Redis. Many ingress processes may fold facts into one record at once: none is lost.

`maveriq:ingress:deployment:<id>` holds one record; the hash `maveriq:ingress:deployments` names them all, with the
time of the last change of each, so that a reader need only read what changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import WatchError

from maveriq.contracts import Deployment, IntentAccepted, State
from maveriq_ingress.folding import Fact, Record, fold

INDEX = "maveriq:ingress:deployments"
KEEP_ENDED_S = 7 * 24 * 3600  # how long an ended deployment can still be looked up


def key_of(deployment_id: UUID) -> str:
    return f"maveriq:ingress:deployment:{deployment_id}"


@dataclass(frozen=True, slots=True)
class Statuses:
    redis: Redis

    async def learn(self, fact: Fact, now: datetime) -> Record:
        """Fold one fact into its deployment's record, atomically. Again is harmless."""
        return await self._update(fact, now, over_admitted=True)

    async def accept(self, accepted: IntentAccepted, now: datetime) -> Record:
        """Claim the id for an intent. Of two intents the first has it: the record says which."""
        return await self._update(accepted, now, over_admitted=False)

    async def _update(self, fact: Fact, now: datetime, *, over_admitted: bool) -> Record:
        key = key_of(fact.deployment_id)
        async with self.redis.pipeline() as pipe:
            while True:
                await pipe.watch(key)
                found = await pipe.get(key)
                record = None if found is None else Record.model_validate_json(found)
                if record is not None and record.admission is not None and not over_admitted:
                    return record
                changed = fold(record, fact, now)
                if changed is record:
                    return changed
                pipe.multi()  # type: ignore[no-untyped-call]
                kept_s = KEEP_ENDED_S if changed.ended or changed.intent is None else None
                pipe.set(key, changed.model_dump_json(), ex=kept_s)
                pipe.hset(INDEX, str(changed.deployment_id), changed.changed_at.isoformat())
                try:
                    await pipe.execute()
                except WatchError:
                    continue  # another fact came in between, so somebody got on: no need to count
                return changed

    async def get(self, deployment_id: UUID) -> Deployment | None:
        record = await self.record(deployment_id)
        return None if record is None else record.deployment()

    async def record(self, deployment_id: UUID) -> Record | None:
        found = await self.redis.get(key_of(deployment_id))
        return None if found is None else Record.model_validate_json(found)

    async def forget(self, deployment_id: UUID) -> None:
        """Undo `accept`: the intent was not passed on after all. Does nothing once a fact has followed."""
        key = key_of(deployment_id)
        async with self.redis.pipeline() as pipe:
            await pipe.watch(key)
            found = await pipe.get(key)
            if found is None or Record.model_validate_json(found).state is not State.ACCEPTED:
                return
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.delete(key)
            pipe.hdel(INDEX, str(deployment_id))
            try:
                await pipe.execute()
            except WatchError:
                return  # a fact came just now: it was passed on

    async def versions(self) -> dict[UUID, datetime]:
        """When each deployment last changed."""
        found = await self.redis.hgetall(INDEX)
        return {UUID(str(one)): datetime.fromisoformat(str(at)) for one, at in found.items()}

    async def read(self, deployment_ids: Iterable[UUID]) -> list[Deployment]:
        """Those of the deployments that are still kept, oldest first; the others leave the index."""
        wanted = list(deployment_ids)
        if not wanted:
            return []
        found = await self.redis.mget([key_of(deployment_id) for deployment_id in wanted])
        gone = [str(deployment_id) for deployment_id, text in zip(wanted, found, strict=True) if text is None]
        if gone:
            await self.redis.hdel(INDEX, *gone)
        known = (Record.model_validate_json(text).deployment() for text in found if text is not None)
        return sorted((one for one in known if one is not None), key=lambda one: (one.accepted_at, one.deployment_id))

    async def all(self) -> list[Deployment]:
        """Oldest first."""
        return await self.read(await self.versions())

    async def accepted(self) -> list[IntentAccepted]:
        """Intents that were accepted and of which nothing was heard since."""
        waiting: list[IntentAccepted] = []
        for deployment_id in await self.versions():
            record = await self.record(deployment_id)
            if record is not None and record.admission is not None and record.state is State.ACCEPTED:
                waiting.append(IntentAccepted(deployment_id=deployment_id, admission=record.admission))
        return waiting
