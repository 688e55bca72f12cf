"""Copies of records that come round: in, and what they cause."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import structlog
from redis.exceptions import RedisError

from maveriq.bus import Bus, Handler, publish_until_kept
from maveriq.contracts import DeploymentKept, DeploymentRestored, Message
from maveriq_allocator import copies, lifecycle
from maveriq_allocator.handlers import Handlers
from maveriq_allocator.placing import MAX_STALE, Overtaken, Placing
from maveriq_allocator.reservations import Loaded, Outcome

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CopyHandlers:
    handlers: Handlers

    async def on_deployment_kept(self, message: DeploymentKept) -> Sequence[Message]:
        """Send it on, as the record is now; a record that Redis has lost is made again first."""
        try:
            return await self._compared(message)
        except RedisError as error:  # a copy that failed too often would be lost just when it is needed
            log.warning("copy not compared; it comes again", error=repr(error))
            return [copies.sent_on(message, uuid4())]

    async def _compared(self, copy: DeploymentKept) -> list[Message]:
        reservations = self.handlers.placing.reservations
        now = await reservations.load(copy.deployment_id)
        told: list[Message] = []
        if now.record.is_lost:
            now = await self._restored(copy)
            told = [
                DeploymentRestored(deployment_id=copy.deployment_id, admission=copy.admission, plan=copy.plan),
                *lifecycle.outlook(now.record),
            ]
        if now.record.closing is not None or not await reservations.is_latest(copy):
            return told
        return [*told, await self._anew(copy, now)]

    async def _restored(self, copy: DeploymentKept) -> Loaded:
        placing = self.handlers.placing
        for _ in range(MAX_STALE):
            before = await placing.reservations.load(copy.deployment_id)
            if not before.record.is_lost:
                return before
            asks_s = self.handlers.sweeping.times.grace_s
            after = copies.restored(before.record, copy, await placing.line.now(), asks_s)
            plan = copies.plan_in(copy)
            if await placing.reservations.commit(before, after, plan) is Outcome.DONE:
                await placing.lined_up(before, after, plan)
                return Loaded(before.version + 1, after)
        raise Overtaken(str(copy.deployment_id))

    async def _anew(self, copy: DeploymentKept, now: Loaded) -> DeploymentKept:
        """Read from the record, where it changed since the copy was made."""
        if now.version == copy.version:
            return copies.sent_on(copy, uuid4())
        plan = await self.handlers.placing.reservations.plan(copy.deployment_id) or copies.plan_in(copy)
        return copies.copied(
            now.record, plan, copy.since, uuid4(), version=now.version, rounds=copy.rounds + 1
        )  # fmt: skip

    def all(self) -> list[Handler[Any]]:
        return [Handler(DeploymentKept, self.on_deployment_kept)]


async def copy_all(bus: Bus, placing: Placing) -> None:
    """Send a copy of each record, once: the broker may have lost those that went round, or never had one."""
    since = await placing.line.now()
    async for deployment_id in placing.reservations.all():
        now, plan = await placing.reservations.load(deployment_id), await placing.reservations.plan(deployment_id)
        if plan is None or now.record.closing is not None or now.record.is_lost:
            continue
        rounds = await placing.reservations.last_round(deployment_id) + 1
        copy = copies.copied(now.record, plan, since, uuid4(), version=now.version, rounds=rounds)
        await publish_until_kept(bus, copy)
