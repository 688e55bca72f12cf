"""Who of those that wait for memory may be tried now. Pure: the line and what is free in, who is due and a claim out.

The line is in order of the intents' priority, then of arrival. Backfill is allowed: whoever fits is due, also when one
ahead of it does not. So that a large intent does not starve, the first in the line that has waited for `PATIENCE_S`
claims the GPUs that it can have soonest (those of the nodes with most free, as if nothing of ours were held there), and
nobody behind it, newcomers included, gets these; at most one claims at a time, so small ones go on with all the rest.
That is EASY backfilling (Lifka, "The ANL/IBM SP scheduling system", 1995), whose head of the queue has the one
reservation; its head claims at once because jobs end, ours later because deployments may not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from maveriq.contracts import Candidate, GpuState, Plan, PlanComputed, Priority, Value
from maveriq_allocator.budget import Clock
from maveriq_allocator.choosing import Choice, Node, choose
from maveriq_allocator.parts import choose_with_fleet

PATIENCE_S = 60.0  # a few restarts of a deployment: memory that comes back within that is waited for without a claim
RETOLD_S = 30.0  # a reason is told anew at most so often


class Missing(Value):
    """A replica without a seat."""

    replica: int
    rank: int
    """Of the first candidate that it may get; FLEET: its part of the plan's fleet."""
    part: str = ""
    """GPU type of the part of the fleet that it is; '': of none."""


class Waiting(Value):
    """What a deployment waits for."""

    since: datetime
    told_at: datetime
    detail: str
    """What is missing, and how much."""
    num_missing: int
    cause: str = ""
    """Why it lacks it; '': it is new."""
    missing: tuple[Missing, ...] = ()
    """Empty: nothing is placed, and all replicas are placed together."""
    asked_until: datetime | None = None
    """Its record was lost: until then workers are asked what of it runs, and nothing of it is placed."""

    def is_asked_about(self, now: datetime) -> bool:
        return self.asked_until is not None and now < self.asked_until

    def without(self, replica: int, whole: Sequence[Missing] = ()) -> "Waiting | None":
        """Once a replica has a seat; None: nothing is missing any more.

        Args:
            replica: another one of them is no longer missing where it was not itself.
            whole: all replicas, in case that it waits for all of them together.
        """
        missing = self.missing or whole
        own = next((each for each in missing if each.replica == replica), missing[-1])
        rest = tuple(each for each in missing if each is not own)
        return self.model_copy(update={"missing": rest, "num_missing": len(rest)}) if rest else None


@dataclass(frozen=True, slots=True)
class Waiter:
    """One in the line."""

    deployment_id: UUID
    plan: PlanComputed
    waiting: Waiting
    detail: str
    """Why it does not fit now."""
    holds_nothing: bool = True

    @property
    def num_replicas(self) -> int | None:
        """To seat at once; None: as many as each candidate says."""
        return 1 if self.waiting.missing else None

    @property
    def place(self) -> tuple[int, datetime]:
        return place_in_line(self.plan.admission.intent.priority, self.waiting.since)

    @property
    def start(self) -> int:
        return max(0, min((missing.rank for missing in self.waiting.missing), default=0))


@dataclass(frozen=True, slots=True)
class Claim:
    """GPUs that are kept for one deployment: nobody behind it in the line gets them."""

    deployment_id: UUID
    place: tuple[int, datetime]
    """Its place in the line."""
    gpus: frozenset[str]

    def keeps_from(self, deployment_id: UUID, place: tuple[int, datetime]) -> frozenset[str]:
        """The GPUs that another one may not have."""
        behind = deployment_id != self.deployment_id and place > self.place
        return self.gpus if behind else frozenset()


@dataclass(frozen=True, slots=True)
class Survey:
    due: tuple[UUID, ...]
    """To be tried now, in order."""
    claim: Claim | None


def place_in_line(priority: Priority, since: datetime) -> tuple[int, datetime]:
    return tuple(Priority).index(priority), since


def all_of(candidate: Candidate) -> tuple[Missing, ...]:
    """Its replicas."""
    return tuple(Missing(replica=number, rank=0) for number in range(candidate.replicas))


def is_over(waiting: Waiting, max_wait_s: float | None, now: datetime) -> bool:
    """Whether it has waited as long as its intent allows."""
    return max_wait_s is not None and now - waiting.since >= timedelta(seconds=max_wait_s)


def without(nodes: Iterable[Node], gpus: frozenset[str]) -> list[Node]:
    """The nodes as if these GPUs were not there."""
    if not gpus:
        return list(nodes)
    return [replace(n, fragments=tuple(f for f in n.fragments if f.gpu not in gpus)) for n in nodes]


def has_more(before: Iterable[GpuState], after: Iterable[GpuState]) -> bool:
    """Whether a GPU has more free than before, or is new."""
    free = {state.gpu.id: state.free_bytes for state in before}
    return any(state.free_bytes > free.get(state.gpu.id, 0) for state in after)


def survey(
    line: Sequence[Waiter], free: Sequence[Node], emptied: Sequence[Node], now: datetime, standing: Claim | None = None,
    clock: Clock | None = None,
) -> Survey:  # fmt: skip
    """Args:
    line: in order.
    free: what is free now.
    emptied: the same nodes as if nothing of ours were held.
    standing: the claim of the last survey, which stands as long as its GPUs are there.
    """
    due: list[UUID] = []
    claim: Claim | None = None
    nodes = list(free)
    hopeless: list[tuple[Plan, int | None, int]] = []  # those alike need not be asked again: nodes only fill up here
    for waiter in line:
        if waiter.waiting.is_asked_about(now):
            continue
        kept = claim.gpus if claim is not None else frozenset[str]()
        alike = (waiter.plan.plan, waiter.num_replicas, waiter.start)
        choice = None if alike in hopeless else _choice(waiter, without(nodes, kept), clock)
        if choice is not None:
            due.append(waiter.deployment_id)
            nodes = _less(nodes, choice)
            continue
        hopeless.append(alike)
        if claim is None:
            claim = _claimed(waiter, nodes, emptied, now, standing, clock)
        if _is_to_be_told(waiter, now):
            due.append(waiter.deployment_id)
    return Survey(tuple(due), claim)


def _claimed(
    waiter: Waiter,
    free: Sequence[Node],
    emptied: Sequence[Node],
    now: datetime,
    standing: Claim | None,
    clock: Clock | None,
) -> Claim | None:
    there = {fragment.gpu for node in free for fragment in node.fragments}
    if standing is not None and standing.deployment_id == waiter.deployment_id and standing.gpus <= there:
        return standing
    if now - waiter.waiting.since < timedelta(seconds=PATIENCE_S):
        return None
    return Claim(waiter.deployment_id, waiter.place, soonest(waiter, free, emptied, clock))


def soonest(
    waiter: Waiter, free: Sequence[Node], emptied: Sequence[Node], clock: Clock | None = None
) -> frozenset[str]:
    """The GPUs that it would get if only a few of the freest nodes were empty; none where all are not enough."""
    order = sorted(range(len(free)), key=lambda at: -sum(f.free_bytes for f in free[at].fragments))
    num_emptied = 1
    while order:
        chosen = set(order[:num_emptied])
        choice = _choice(waiter, [emptied[at] if at in chosen else free[at] for at in range(len(free))], clock)
        if choice is not None:
            return frozenset(gpu for seat in choice.seats for stage in seat.stages for gpu in stage.gpus)
        if num_emptied >= len(order):
            break
        num_emptied *= 2
    return frozenset()


def _choice(waiter: Waiter, nodes: Sequence[Node], clock: Clock | None) -> Choice | None:
    plan, wanted = waiter.plan.plan, waiter.num_replicas
    if plan.candidates:
        return choose(plan, nodes, num_replicas=wanted, start=waiter.start, clock=clock)
    parts = dict.fromkeys(missing.part for missing in waiter.waiting.missing) or [""]
    found = (choose_with_fleet(plan, nodes, num_replicas=wanted, part=part, clock=clock) for part in parts)
    return next((choice for choice in found if choice is not None), None)


def _less(nodes: Sequence[Node], choice: Choice) -> list[Node]:
    """What is left once the seats are taken."""
    held: dict[str, int] = {}
    for seat in choice.seats:
        for stage in seat.stages:
            for gpu in stage.gpus:
                held[gpu] = held.get(gpu, 0) + stage.reserved_bytes
    return [
        replace(n, fragments=tuple(replace(f, free_bytes=f.free_bytes - held.get(f.gpu, 0)) for f in n.fragments))
        for n in nodes
    ]


def _is_to_be_told(waiter: Waiter, now: datetime) -> bool:
    """Its time is over, or the reason that was told is no longer the reason."""
    over = waiter.holds_nothing and is_over(waiter.waiting, waiter.plan.admission.intent.max_wait_s, now)
    stale = waiter.detail != waiter.waiting.detail
    return over or (stale and now - waiter.waiting.told_at >= timedelta(seconds=RETOLD_S))
