"""Redis that restarts empty: what waited, and whatever of a deployment does not run, comes back from its copy."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from redis.exceptions import ConnectionError

from maveriq.bus.inprocess import InProcessBus
from maveriq.contracts import (
    DeploymentKept,
    DeploymentRestored,
    DeploymentWaiting,
    Message,
    PlacementConfirmed,
    PlacementRequested,
    PlacementReserved,
    ReleaseAccepted,
    ReplicaFailed,
)
from maveriq_allocator.__main__ import wire
from maveriq_allocator.copy_handlers import copy_all
from maveriq_allocator.line import Line
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.settings import Settings
from tests.store.allocators import GRACE_S, Allocators, of_type, ready, report
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed

OTHER = UUID(int=7)


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    made = Allocators(redis_url)
    yield made
    await made.redis.aclose()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    return Clock(monkeypatch)


class Clock:
    """By which those that wait are judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = timedelta(0)
        now = Line.now

        async def later(line: Line) -> datetime:
            return await now(line) + self._ahead

        monkeypatch.setattr(Line, "now", later)

    def pass_grace(self) -> None:
        self._ahead += timedelta(seconds=GRACE_S)


def copy_in(answer: list[Message]) -> DeploymentKept:
    (copy,) = of_type(DeploymentKept, answer)
    return copy


async def try_again(allocators: Allocators) -> list[PlacementReserved]:
    return of_type(PlacementReserved, await allocators.tell(PlacementRequested(deployment_id=DEPLOYMENT)))


async def one_of_two(allocators: Allocators) -> tuple[PlacementReserved, DeploymentKept]:
    """The order of the replica that runs on a; the other, which ran on b, lost its GPU and waits."""
    await allocators.tell(report("a", 80))
    await allocators.tell(report("b", 80))
    answer = await allocators.tell(computed(candidate(), replicas=2))
    on_a, on_b = sorted(of_type(PlacementReserved, answer), key=lambda order: order.node)
    for order in (on_a, on_b):
        await allocators.tell(ready(order))
    await allocators.tell(report("b", 10, number=2))
    at = on_b.placement
    died = ReplicaFailed(deployment_id=DEPLOYMENT, replica=at.replica, token=at.token, node="b", detail="died")
    await allocators.tell(died)
    return on_a, copy_in(await allocators.tell(copy_in(answer)))


async def waiting(allocators: Allocators) -> DeploymentKept:
    """Its first copy: another deployment has the only GPU."""
    await allocators.tell(report("a", 80))
    await allocators.tell(computed(deployment_id=OTHER))
    return copy_in(await allocators.tell(computed()))


async def test_what_waited_is_told_placed_and_copied_again_after_redis_was_emptied(
    allocators: Allocators, asked: Clock
) -> None:
    unchanged = await allocators.tell(await waiting(allocators))
    second = copy_in(unchanged)
    assert unchanged == [second]
    await allocators.redis.flushall()
    answer = await allocators.tell(second)
    (restored,) = of_type(DeploymentRestored, answer)
    assert (restored.admission, restored.plan) == (computed().admission, computed().plan)
    (told,) = of_type(DeploymentWaiting, answer)
    assert told.since == second.since
    await allocators.tell(report("a", 80, number=2))
    assert await try_again(allocators) == []  # it may run somewhere
    asked.pass_grace()
    assert len(await try_again(allocators)) == 1
    third = copy_in(answer)
    assert third.rounds == second.rounds + 1
    assert of_type(DeploymentRestored, await allocators.tell(third)) == []


@pytest.mark.parametrize("copy_first", [True, False], ids=["its copy came first", "what runs came first"])
async def test_what_runs_is_taken_back_and_only_what_does_not_is_placed_again(
    allocators: Allocators, asked: Clock, copy_first: bool
) -> None:
    on_a, copy = await one_of_two(allocators)
    await allocators.redis.flushall()
    await allocators.tell(report("a", 80, running=[on_a], number=3))
    told: list[Message] = [copy, PlacementConfirmed(deployment_id=DEPLOYMENT, placement=on_a.placement)]
    for message in told if copy_first else reversed(told):
        await allocators.tell(message)
    await allocators.tell(ready(on_a))
    await allocators.tell(report("b", 80, number=3))
    asked.pass_grace()
    (missing,) = await try_again(allocators)
    assert (missing.node, missing.placement.replica) == ("b", 1)
    assert await allocators.held() == {"a/0": 80, "b/0": 80}
    record = (await Reservations(allocators.redis).load(DEPLOYMENT)).record
    assert record.waiting is None
    assert await Reservations(allocators.redis).plan(DEPLOYMENT) == computed(candidate(), replicas=2)


async def test_a_copy_from_before_it_was_placed_places_nothing_twice(allocators: Allocators, asked: Clock) -> None:
    copy = await waiting(allocators)
    await allocators.tell(report("b", 80))
    (order,) = await try_again(allocators)
    await allocators.redis.flushall()
    await allocators.tell(report("b", 80, running=[order], number=2))
    await allocators.tell(copy)
    await allocators.tell(PlacementConfirmed(deployment_id=DEPLOYMENT, placement=order.placement))
    await allocators.tell(report("a", 80, number=2))
    asked.pass_grace()
    assert [order.placement.token for order in await try_again(allocators)] in ([], [order.placement.token])
    assert await allocators.held() == {"b/0": 80}


async def test_of_copies_of_one_deployment_one_goes_on(allocators: Allocators) -> None:
    await allocators.tell(report("a", 80))
    one, other = [copy_in(await allocators.tell(computed())) for _ in range(2)]  # its ack was lost
    assert one.mark != other.mark
    further = copy_in(await allocators.tell(one))
    assert copy_in(await allocators.tell(one)).rounds == further.rounds  # handed out again
    assert await allocators.tell(other) == []
    assert copy_in(await allocators.tell(further)).rounds == 2
    assert await allocators.tell(one) == []


async def test_a_copy_says_what_its_record_says_and_ends_with_it(allocators: Allocators) -> None:
    await allocators.tell(report("a", 80))
    first = copy_in(await allocators.tell(computed()))
    second = copy_in(await allocators.tell(first))
    assert [each.replica for each in second.replicas] == [0]
    assert second.version == 1
    newer = computed(candidate(), candidate(pp=2))
    await allocators.tell(newer)
    assert copy_in(await allocators.tell(second)).plan == newer.plan
    await allocators.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    assert await allocators.tell(second) == []


async def test_what_was_released_meanwhile_is_not_made_again(allocators: Allocators) -> None:
    copy = await waiting(allocators)
    await allocators.redis.flushall()
    await allocators.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    assert await allocators.tell(copy) == []


async def test_a_copy_that_comes_while_redis_is_away_goes_on(
    allocators: Allocators, monkeypatch: pytest.MonkeyPatch
) -> None:
    await allocators.tell(report("a", 80))
    copy = copy_in(await allocators.tell(computed()))

    async def away(self: Reservations, deployment_id: UUID) -> None:
        raise ConnectionError

    monkeypatch.setattr(Reservations, "load", away)
    on = copy_in(await allocators.tell(copy))
    assert (on.rounds, on.plan) == (1, copy.plan)


async def test_an_allocator_that_starts_sends_a_copy_of_every_deployment_that_has_not_ended(
    allocators: Allocators, bus: InProcessBus
) -> None:
    copy = await waiting(allocators)
    await allocators.tell(copy)
    await allocators.tell(ReleaseAccepted(deployment_id=OTHER))
    ended = UUID(int=8)
    await allocators.tell(ReleaseAccepted(deployment_id=ended))
    sent: list[Message] = []
    mailbox = await bus.mailbox(sent.append)
    await mailbox.bind(DeploymentKept.topic)
    await copy_all(bus, wire(allocators.redis, Settings("redis://", GRACE_S)).placing)
    await asyncio.sleep(0.01)
    (again,) = of_type(DeploymentKept, sent)
    assert (again.deployment_id, again.plan, again.rounds) == (DEPLOYMENT, copy.plan, 1)
