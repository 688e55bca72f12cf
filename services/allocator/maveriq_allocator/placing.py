"""Finds seats and takes them: snapshot, decision, commit, and again when somebody was faster.

Nothing is locked while a decision is made, so a commit can be refused: because the deployment's record changed (the
decision is made again from the new one) or because bytes were taken meanwhile (a new snapshot).
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from maveriq.contracts import PlanComputed
from maveriq_allocator import lifecycle
from maveriq_allocator.line import Line
from maveriq_allocator.parts import FLEET
from maveriq_allocator.quotas import OverQuota
from maveriq_allocator.record import Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from maveriq_allocator.trying import Attempt, Loss, Trying

MAX_TAKEN = 8  # times that a candidate's bytes may be taken before our eyes; then the next is tried
MAX_MOVED = 8  # times that a choice is made again because a GPU chosen has changed, though its bytes may be free
MAX_STALE = 50  # changes of one deployment that may overtake ours before the message is retried later


class Overtaken(Exception):
    """Others changed this deployment each time that we tried. The message is to be handled again later."""


@dataclass(frozen=True, slots=True)
class Placing:
    reservations: Reservations
    line: Line
    trying: Trying

    async def change(self, deployment_id: UUID, decide: Callable[[Record], Record]) -> Record:
        """Bring a record to what `decide` says, which takes no new bytes, and return it."""
        for _ in range(MAX_STALE):
            before = await self.reservations.load(deployment_id)
            after = decide(before.record)
            if after == before.record or await self.reservations.commit(before, after) is Outcome.DONE:
                return after
        raise Overtaken(str(deployment_id))

    async def place(self, plan: PlanComputed) -> Record:
        """Seat all replicas of a new deployment, or record that it waits, or why that cannot be.

        Of one that was planned before, what runs stays; the plan is kept for what is placed next.
        """
        tries = _Tries()
        for _ in range(MAX_STALE + MAX_TAKEN * len(plan.plan.candidates)):
            before = await self.reservations.load(plan.deployment_id)
            if before.record.closing is not None:
                return before.record
            if before.record.planned:
                if (after := await self._kept(before, plan)) is not None:
                    return after
                continue
            attempt = await self.trying.first_seats(before.record, plan, tries.further, tries.over)
            if await self._commit(before, attempt, tries, plan):
                return await self.lined_up(before, attempt.after, plan)
        raise Overtaken(str(plan.deployment_id))

    async def _kept(self, before: Loaded, plan: PlanComputed) -> Record | None:
        """The record with `plan` as its plan; None: it changed meanwhile."""
        if await self.reservations.plan(plan.deployment_id) == plan:  # the same message again
            return before.record
        after = lifecycle.replanned(before.record)
        return after if await self.reservations.commit(before, after, plan) is Outcome.DONE else None

    async def learn(self, deployment_id: UUID, token: str) -> None:
        """A placement failed for memory: those alike are estimated higher from now on."""
        failed = (await self.reservations.load(deployment_id)).record.holding(token)
        if failed is not None:
            await self.trying.lessons.learn(failed.placement.model, failed.placement)

    async def replace(self, deployment_id: UUID, token: str, loss: Loss) -> Record:
        """Seat a replica that is gone anew, or wait for a seat, or give the deployment up.

        One that died after it was ready, or whose node is lost, gets its own candidate again; one that did not start
        the next.
        """
        tries = _Tries()
        for _ in range(MAX_STALE + MAX_TAKEN * 64):
            before = await self.reservations.load(deployment_id)
            gone = before.record.holding(token)
            if gone is None:
                return before.record
            plan = await self.reservations.plan(deployment_id)
            attempt = await self.trying.next_seat(before.record, plan, gone, tries.further, loss, tries.over)
            if await self._commit(before, attempt, tries):
                return attempt.after if plan is None else await self.lined_up(before, attempt.after, plan)
        raise Overtaken(str(deployment_id))

    async def retry(self, deployment_id: UUID) -> Record:
        """Seat what waits for memory, as far as there is room now."""
        tries = _Tries()
        for _ in range(MAX_STALE + MAX_TAKEN * 64):
            before = await self.reservations.load(deployment_id)
            plan = await self.reservations.plan(deployment_id)
            waiting = before.record.waiting
            if waiting is None or plan is None:
                await self.line.leave(deployment_id, before.version)
                return before.record
            if waiting.asked_until is not None and waiting.is_asked_about(await self.line.now()):
                return before.record
            attempt = await self.trying.missing_seat(before.record, plan, tries.further, tries.over)
            if attempt.after != before.record and not await self._commit(before, attempt, tries):
                continue
            if attempt.rank is None or attempt.after.waiting is None:
                return await self.lined_up(before, attempt.after, plan)
            tries = _Tries()  # one more has a seat
        raise Overtaken(str(deployment_id))

    async def _commit(
        self, before: Loaded, attempt: Attempt, tries: "_Tries", plan: PlanComputed | None = None
    ) -> bool:
        outcome = await self.reservations.commit(before, attempt.after, plan, attempt.seen if tries.is_strict else ())
        tries.note(outcome, attempt)
        return outcome is Outcome.DONE

    async def lined_up(self, before: Loaded, after: Record, plan: PlanComputed) -> Record:
        """In the line if it waits, else out of it."""
        if after.waiting is not None:
            await self.line.join(after.deployment_id, plan.admission.intent.priority, after.waiting.since)
        elif before.record.waiting is not None:
            await self.line.leave(after.deployment_id, before.version + 1)
        return after


@dataclass(slots=True)
class _Tries:
    """What was refused so far, and so where the next try begins."""

    further: int = FLEET
    """The rank to start from."""
    over: OverQuota | None = None
    """Of those that were over the quota, the nearest to it."""
    _taken: int = 0
    """How often the bytes of its candidate were taken."""
    _moved: int = 0

    @property
    def is_strict(self) -> bool:
        """Whether a choice from an old snapshot is refused though its bytes are free: not for ever, in a busy fleet."""
        return self._moved < MAX_MOVED

    def note(self, outcome: Outcome | OverQuota, attempt: Attempt) -> None:
        rank = self.further if attempt.rank is None else attempt.rank
        if isinstance(outcome, OverQuota):
            self.over, self.further, self._taken = outcome.nearer(self.over), rank + 1, 0
        elif outcome is Outcome.MOVED:
            self._moved += 1
        elif outcome is Outcome.TAKEN and attempt.rank is not None:
            self._taken = 1 if rank > self.further else self._taken + 1
            self.further = rank
            if self._taken >= MAX_TAKEN:
                self.further, self._taken = rank + 1, 0
