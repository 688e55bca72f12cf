"""Finds seats and takes them: snapshot, decision, commit, and again when somebody was faster.

Nothing is locked while a decision is made, so a commit can be refused: because the deployment's record changed (the
decision is made again from the new one) or because bytes were taken meanwhile (a new snapshot).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from maveriq.contracts import Failure, FailureReason, PlanComputed
from maveriq_allocator import lifecycle
from maveriq_allocator.choosing import Choice, choose, shortage
from maveriq_allocator.holds import Holds
from maveriq_allocator.inventory import Inventory, NodeState, heard
from maveriq_allocator.lifecycle import Held, Phase, Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations

MAX_TAKEN = 8  # times that a candidate's bytes may be taken before our eyes; then the next is tried
MAX_STALE = 50  # changes of one deployment that may overtake ours before the message is retried later


class Overtaken(Exception):
    """Others changed this deployment each time that we tried. The message is to be handled again later."""


class Lent(Exception):
    """Only what calibrations hold is missing, and was asked back. The message is to be handled again later."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to write, and the rank of the candidate that it takes; None where it takes no new bytes."""

    after: Record
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Placing:
    inventory: Inventory
    reservations: Reservations
    holds: Holds
    node_timeout_s: float

    async def change(self, deployment_id: UUID, decide: Callable[[Record], Record]) -> Record:
        """Bring a record to what `decide` says, which takes no new bytes, and return it."""
        for _ in range(MAX_STALE):
            before = await self.reservations.load(deployment_id)
            after = decide(before.record)
            if after == before.record or await self.reservations.commit(before, after) is Outcome.DONE:
                return after
        raise Overtaken(str(deployment_id))

    async def place(self, plan: PlanComputed) -> Record:
        """Seat all replicas of a new deployment, or record why that cannot be.

        Of one that was planned before, what runs stays; the plan is kept for what is placed next.
        """
        start, taken = 0, 0
        for _ in range(MAX_STALE + MAX_TAKEN * len(plan.plan.candidates)):
            before = await self.reservations.load(plan.deployment_id)
            if before.record.closing is not None:
                return before.record
            if before.record.planned:
                if (after := await self._kept(before, plan)) is not None:
                    return after
                continue
            attempt = await self._first_seats(before.record, plan, start)
            outcome = await self.reservations.commit(before, attempt.after, plan)
            if outcome is Outcome.DONE:
                return attempt.after
            start, taken = _onwards(outcome, attempt, start, taken)
        raise Overtaken(str(plan.deployment_id))

    async def _kept(self, before: Loaded, plan: PlanComputed) -> Record | None:
        """The record with `plan` as its plan; None: it changed meanwhile."""
        if await self.reservations.plan(plan.deployment_id) == plan:  # the same message again
            return before.record
        after = lifecycle.replanned(before.record)
        return after if await self.reservations.commit(before, after, plan) is Outcome.DONE else None

    async def replace(self, deployment_id: UUID, token: str, detail: str, *, unusable: bool = False) -> Record:
        """Seat a failed replica anew, or give the deployment up.

        One that died after it was ready gets its own candidate again, one that did not start the next.

        Args:
            unusable: its checkpoint is to blame, so candidates with the same one are passed over.
        """
        further, taken = 0, 0
        for _ in range(MAX_STALE + MAX_TAKEN * 64):
            before = await self.reservations.load(deployment_id)
            lost = before.record.holding(token)
            if lost is None:
                return before.record
            start = max(lost.rank + (lost.phase is not Phase.READY), further)
            attempt = await self._next_seat(before, lost, start, detail, unusable=unusable)
            outcome = await self.reservations.commit(before, attempt.after)
            if outcome is Outcome.DONE:
                return attempt.after
            further, taken = _onwards(outcome, attempt, start, taken)
        raise Overtaken(str(deployment_id))

    async def _first_seats(self, record: Record, plan: PlanComputed, start: int) -> Attempt:
        nodes = await self.inventory.snapshot()
        choice = await self._choose(plan, nodes, None, start)
        if choice is not None:
            return Attempt(lifecycle.placed(record, plan, choice), choice.rank)
        if await self._is_lent(plan, nodes, start) and await self.holds.want_back(record.deployment_id):
            raise Lent(str(record.deployment_id))
        failure = Failure(reason=FailureReason.NO_CAPACITY, detail=self._shortage(plan, 0, nodes, None))
        return Attempt(lifecycle.failed(record, failure))

    async def _next_seat(
        self, before: Loaded, lost: Held, start: int, detail: str, *, unusable: bool = False
    ) -> Attempt:
        if lost.phase is Phase.DRAINING:
            return Attempt(lifecycle.stopped(before.record, lost.placement.token))
        plan = await self.reservations.plan(before.record.deployment_id)
        if plan is not None and unusable:
            start = lifecycle.after_checkpoint(plan, lost, start)
        if plan is None or start >= len(plan.plan.candidates):
            failure = Failure(reason=FailureReason.ENGINE_FAILED, detail=f"{detail}; no candidate is left to try")
            return Attempt(lifecycle.failed(before.record, failure, lost))
        nodes = await self.inventory.snapshot()
        holder = (before.record.deployment_id, lost.placement.replica)
        choice = await self._choose(plan, nodes, 1, start, holder)
        if choice is not None:
            return Attempt(lifecycle.moved(before.record, plan, lost, choice), choice.rank)
        short = self._shortage(plan, start, nodes, 1, holder)
        failure = Failure(
            reason=FailureReason.NO_CAPACITY,
            detail=f"replica {lost.placement.replica} failed ({detail}) and no further candidate fits: {short}",
        )
        return Attempt(lifecycle.failed(before.record, failure, lost))

    async def _is_lent(self, plan: PlanComputed, nodes: list[NodeState], start: int) -> bool:
        """Whether it would fit if calibrations held nothing."""
        if not any(h.calibration for node in nodes for state in node.gpus for h in state.holdings):
            return False
        return await self._choose(plan, [node.unlent() for node in nodes], None, start) is not None

    async def _choose(
        self, plan: PlanComputed, nodes: list[NodeState], num_replicas: int | None, start: int,
        apart_from: tuple[UUID, int] | None = None,
    ) -> Choice | None:  # fmt: skip
        fragments = [node.fragments(apart_from) for node in heard(nodes, self.node_timeout_s)]
        decide = partial(choose, plan.plan, fragments, num_replicas=num_replicas, start=start)
        return await asyncio.to_thread(decide)  # seconds, for 64 candidates on a thousand full nodes

    def _shortage(
        self, plan: PlanComputed, rank: int, nodes: list[NodeState], num_replicas: int | None,
        apart_from: tuple[UUID, int] | None = None,
    ) -> str:  # fmt: skip
        """Why the best candidate from `rank` on does not fit, and which nodes were not asked."""
        present = heard(nodes, self.node_timeout_s)
        fragments = [node.fragments(apart_from) for node in present]
        candidate = plan.plan.candidates[rank]
        text = shortage(candidate, plan.plan.facts.num_layers, fragments, num_replicas or candidate.replicas)
        others = len(plan.plan.candidates) - rank - 1
        if others:
            text += f"; nor does any of the {others} candidate(s) after it fit"
        silent = sorted({node.name for node in nodes} - {node.name for node in present})
        if silent:
            text += f"; nodes that no longer report: {', '.join(silent[:8])}"
        return text


def _onwards(outcome: Outcome, attempt: Attempt, start: int, taken: int) -> tuple[int, int]:
    """The rank to start from next, and how often its candidate's bytes were taken so far."""
    if outcome is not Outcome.TAKEN or attempt.rank is None:
        return start, taken
    if attempt.rank > start:
        return attempt.rank, 1
    return (start, taken + 1) if taken + 1 < MAX_TAKEN else (start + 1, 0)
