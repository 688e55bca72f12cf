"""One try to seat a deployment: reads what is free, decides, and says what the record is to become. Commits nothing."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from maveriq.contracts import Failure, FailureReason, PlanComputed, Strategy
from maveriq_allocator import lifecycle, moving
from maveriq_allocator.capacity import could_ever, why_not
from maveriq_allocator.choosing import Choice, manner_of
from maveriq_allocator.easing import eased, in_words
from maveriq_allocator.holds import Holds
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.lessons import Lessons
from maveriq_allocator.line import Line
from maveriq_allocator.node_state import NodeState
from maveriq_allocator.parts import FLEET, choose_with_fleet, part_of
from maveriq_allocator.quotas import OverQuota
from maveriq_allocator.record import Held, Phase, Record
from maveriq_allocator.situation import Situation
from maveriq_allocator.teaching import taught
from maveriq_allocator.waiting import Missing, Waiting, is_over, place_in_line


class Lent(Exception):
    """Only what calibrations hold is missing, and was asked back. The message is to be handled again later."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to write, and the rank of the candidate that it takes; None where it takes no new bytes."""

    after: Record
    rank: int | None = None
    seen: Sequence[NodeState] = ()
    """The snapshot that its GPUs were chosen from."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a replica is gone."""

    detail: str
    checkpoint_unusable: bool = False
    """Candidates with the same one are passed over."""
    blameless: bool = False
    """Its GPU or node is lost: the candidate is not to blame."""
    node_lost: bool = False
    """Nothing is placed there for now, whatever the node last said."""


@dataclass(frozen=True, slots=True)
class _Lack:
    """What has no seat now."""

    plan: PlanComputed
    situation: Situation
    start: int
    detail: str
    missing: tuple[Missing, ...] = ()
    cause: str = ""
    gone: Held | None = None

    @property
    def num_replicas(self) -> int | None:
        return 1 if self.missing else None


@dataclass(frozen=True, slots=True)
class Trying:
    inventory: Inventory
    holds: Holds
    line: Line
    lessons: Lessons
    node_timeout_s: float
    strategy: Strategy = Strategy.BEST_FIT
    """Of intents that name none."""

    async def first_seats(
        self, record: Record, plan: PlanComputed, further: int, over: OverQuota | None = None
    ) -> Attempt:
        """All replicas of a deployment that has none.

        Args:
            further: the rank to begin with, where candidates before it were taken before our eyes.
            over: why the last one was refused.
        """
        plan, situation = await self._facing(record, plan)
        choice = await self._choose(plan, situation, None, further)
        if choice is not None:
            return Attempt(lifecycle.placed(record, plan, choice), choice.rank, situation.nodes)
        if over is not None:
            return Attempt(lifecycle.failed(record, Failure(reason=FailureReason.QUOTA_EXCEEDED, detail=str(over))))
        lack = _Lack(plan, situation, 0, await self.reason(plan, situation, None, 0))
        return Attempt(await self._wait_or_fail(record, lack))

    async def missing_seat(
        self, record: Record, plan: PlanComputed, further: int, over: OverQuota | None = None
    ) -> Attempt:
        """One of the replicas that wait for a seat, or all where there is none yet."""
        waiting = record.waiting
        if waiting is None or not waiting.missing:
            return await self.first_seats(record, plan, further, over)
        plan, situation = await self._facing(record, plan)
        for missing in waiting.missing:
            choice = await self._choose(plan, situation, 1, max(missing.rank, further), part=missing.part)
            if choice is not None:
                return Attempt(lifecycle.seated(record, plan, missing, choice), choice.rank, situation.nodes)
        start = max(0, min(missing.rank for missing in waiting.missing))
        detail = await self.reason(plan, situation, 1, start) if over is None else str(over)
        return Attempt(
            await self._wait_or_fail(record, _Lack(plan, situation, start, detail, waiting.missing, waiting.cause))
        )

    async def next_seat(
        self, record: Record, plan: PlanComputed | None, gone: Held, further: int, loss: Loss,
        over: OverQuota | None = None,
    ) -> Attempt:  # fmt: skip
        """Another seat for a replica that is gone: with its own candidate where that is not to blame, else the next."""
        if gone.phase is Phase.DRAINING:
            return Attempt(lifecycle.stopped(record, gone.placement.token))
        if moving.is_replaced(record, gone):
            return Attempt(lifecycle.lost(record, gone))
        is_to_blame = not loss.blameless and gone.phase is not Phase.READY
        start = max(0, gone.rank + is_to_blame)
        if plan is not None and loss.checkpoint_unusable:
            start = lifecycle.after_checkpoint(plan, gone, start)
        at = gone.placement
        was_part = bool(at.lanes) or gone.rank == FLEET
        part = part_of(plan.plan, at.candidate.configuration.gpu_type) if was_part and plan is not None else ""
        first = FLEET if part and not is_to_blame and not loss.checkpoint_unusable else start
        if plan is None or (first > FLEET and start >= len(plan.plan.candidates)):
            failure = Failure(reason=FailureReason.ENGINE_FAILED, detail=f"{loss.detail}; no candidate is left to try")
            return Attempt(lifecycle.failed(record, failure, gone))
        plan, situation = await self._facing(record, plan, in_line=False)
        if loss.node_lost:
            situation = situation.avoiding(at.nodes)
        holder = (record.deployment_id, at.replica)
        choice = await self._choose(plan, situation, 1, max(first, further), holder, part)
        if choice is not None:
            return Attempt(lifecycle.moved(record, plan, gone, choice), choice.rank, situation.nodes)
        waiting = record.waiting
        missing = (*(waiting.missing if waiting else ()), Missing(replica=at.replica, rank=first, part=part))
        cause = f"replica {at.replica} {'is lost' if loss.blameless else 'failed'} ({loss.detail}): "
        detail = (
            await self.reason(plan, situation, 1, start, (record.deployment_id, at.replica))
            if over is None
            else str(over)
        )
        return Attempt(await self._wait_or_fail(record, _Lack(plan, situation, start, detail, missing, cause, gone)))

    async def situation(self) -> Situation:
        return Situation(await self.inventory.snapshot(), self.node_timeout_s)

    async def reason(
        self, plan: PlanComputed, situation: Situation, num_replicas: int | None, start: int,
        apart_from: tuple[UUID, int] | None = None,
    ) -> str:  # fmt: skip
        """Why a plan does not fit now."""
        lessons = await self.lessons.of(plan)
        tell = partial(
            why_not, plan, situation.free(apart_from), num_replicas, start, silent=situation.silent(), lessons=lessons
        )
        text = await asyncio.to_thread(tell)
        if situation.kept:
            text += f"; {len(situation.kept)} GPU(s) are kept for a deployment that is ahead in the line"
        return text

    async def _facing(
        self, record: Record, plan: PlanComputed, *, in_line: bool = True
    ) -> tuple[PlanComputed, Situation]:
        """The plan with what failures taught, and what it may choose from; claims bind only who is in the line."""
        lessons = await self.lessons.of(plan)
        situation = await self.situation()
        claim = await self.line.claim() if in_line else None
        if claim is not None:
            since = record.waiting.since if record.waiting is not None else await self.line.now()
            place = place_in_line(plan.admission.intent.priority, since)
            situation = replace(situation, kept=claim.keeps_from(record.deployment_id, place))
        return taught(plan, lessons), situation

    async def _choose(
        self, plan: PlanComputed, situation: Situation, num_replicas: int | None, start: int,
        apart_from: tuple[UUID, int] | None = None, part: str = "",
    ) -> Choice | None:  # fmt: skip
        decide = partial(
            choose_with_fleet, plan.plan, situation.free(apart_from), num_replicas=num_replicas, start=start,
            manner=manner_of(plan.admission.intent, self.strategy), part=part, clock=time.thread_time,
        )  # fmt: skip
        return await asyncio.to_thread(decide)

    async def _wait_or_fail(self, record: Record, lack: _Lack) -> Record:
        """The record once what it lacks waits; or once it is given up, because waiting is useless or took too long."""
        max_wait_s = lack.plan.admission.intent.max_wait_s
        serves = any(held is not lack.gone for held in record.held)
        if await self._is_lent(lack):
            asked = await self.holds.want_back(record.deployment_id)
            if asked and max_wait_s == 0 and not serves:
                raise Lent(str(record.deployment_id))
        emptied = lack.situation.emptied()
        wanted = (lack.plan, emptied, lack.num_replicas, lack.start)
        if not await asyncio.to_thread(could_ever, *wanted, time.thread_time):
            told = await asyncio.to_thread(why_not, *wanted, lessons=await self.lessons.of(lack.plan))
            return _given_up(record, lack, f"it would not fit if nothing else ran either: {told}")
        now = await self.line.now()
        waiting = _waiting(record, lack, now, serves=serves)
        if not serves and is_over(waiting, max_wait_s, now):
            waited_s = (now - waiting.since).total_seconds()
            return _given_up(record, lack, (f"waited {waited_s:.0f} s; " if waited_s >= 1 else "") + lack.detail)
        return lifecycle.waits(record, waiting, lack.gone)

    async def _is_lent(self, lack: _Lack) -> bool:
        """Whether it would fit if calibrations held nothing."""
        if not lack.situation.is_lent:
            return False
        start = lack.start if lack.plan.plan.candidates else FLEET
        part = lack.missing[0].part if lack.missing else ""
        unlent = lack.situation.unlent()
        return await self._choose(lack.plan, unlent, lack.num_replicas, start, part=part) is not None


def _waiting(record: Record, lack: _Lack, now: datetime, *, serves: bool) -> Waiting:
    """What it waits for; its time counts anew from when nothing of it is left."""
    old = record.waiting
    since = old.since if old is not None and (serves or lack.gone is None) else now
    waiting = Waiting(
        since=since,
        told_at=now if old is None else old.told_at,
        cause=lack.cause,
        detail=lack.detail,
        num_missing=len(lack.missing) or lack.plan.plan.num_replicas,
        missing=lack.missing,
        asked_until=None if old is None else old.asked_until,
    )
    return waiting if waiting == old else waiting.model_copy(update={"told_at": now})


def _given_up(record: Record, lack: _Lack, detail: str) -> Record:
    offers = eased(lack.plan)
    words = f"{lack.cause}{detail}{in_words(lack.plan, offers)}"
    failure = Failure(reason=FailureReason.NO_CAPACITY, detail=words, counteroffers=offers)
    return lifecycle.failed(record, failure, lack.gone)
