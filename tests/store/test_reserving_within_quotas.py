"""Quotas and headroom at the moment of reserving: nobody holds more than allowed, however many ask at once."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    FailureReason,
    Gpu,
    MemoryDrifted,
    MemoryHeld,
    MemoryRequested,
    PlacementReserved,
    ReleaseAccepted,
)
from maveriq_allocator import lifecycle
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.quotas import OverQuota, parse_headroom, parse_quotas
from maveriq_allocator.record import Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from maveriq_allocator.store import Store, connect
from tests.store.allocators import Allocators, of_type, report, stopped
from tests.store.test_reservations import blank, holding
from tests.unit.allocator.plans import candidate, computed, memory, reported

QUOTAS = parse_quotas("team-a=3gpus,150B;*=2gpus")


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Store]:
    client = connect(redis_url)
    yield client
    await client.aclose()


def of_tenant(record: Record, tenant: str) -> Record:
    held = tuple(
        one.model_copy(update={"placement": one.placement.model_copy(update={"tenant": tenant})}) for one in record.held
    )
    return record.model_copy(update={"held": held})


def wanted(tenant: str, **held: int) -> Record:
    return of_tenant(holding(uuid4(), ("a", {name.replace("_", "/"): size for name, size in held.items()})), tenant)


def before(record: Record) -> Loaded:
    return blank(record.deployment_id)


async def test_of_many_that_ask_at_once_a_tenant_gets_as_much_as_its_quota(redis: Store) -> None:
    await Inventory(redis).report(reported("a", 10_000, 10_000))
    reservations = [Reservations(redis, QUOTAS) for _ in range(3)]
    records = [wanted("team-a", a_0=40) for _ in range(12)]
    outcomes = await asyncio.gather(
        *(reservations[n % 3].commit(before(record), record) for n, record in enumerate(records))
    )
    assert outcomes.count(Outcome.DONE) == 3
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverQuota)]
    assert len(refused) == 9
    assert (refused[0].what, refused[0].used, refused[0].wanted) == ("gpus", "3", "1")


async def test_bytes_have_a_quota_too_and_other_tenants_their_own(redis: Store) -> None:
    await Inventory(redis).report(reported("a", 10_000, 10_000, 10_000))
    reservations = Reservations(redis, QUOTAS)
    first, large, others = wanted("team-a", a_0=100), wanted("team-a", a_1=51), wanted("b", a_0=900, a_1=900)
    assert await reservations.commit(before(first), first) is Outcome.DONE
    over = await reservations.commit(before(large), large)
    assert isinstance(over, OverQuota)
    assert (over.what, over.used, over.wanted) == ("bytes", "100", "51")
    assert await reservations.commit(before(others), others) is Outcome.DONE
    more = wanted("b", a_2=1)
    assert isinstance(await reservations.commit(before(more), more), OverQuota)


async def test_what_is_given_back_can_be_taken_again_and_a_drain_is_never_refused(redis: Store) -> None:
    await Inventory(redis).report(reported("a", 10_000))
    reservations = Reservations(redis)
    first = wanted("team-a", a_0=5000)
    assert await reservations.commit(before(first), first) is Outcome.DONE  # before there was a quota
    reservations = Reservations(redis, QUOTAS)
    draining = lifecycle.released(first)
    assert await reservations.commit(Loaded(1, first), draining) is Outcome.DONE
    small = wanted("team-a", a_0=10)
    assert isinstance(await reservations.commit(before(small), small), OverQuota)
    ended = lifecycle.stopped(draining, first.held[0].placement.token)
    assert await reservations.commit(Loaded(2, draining), ended) is Outcome.DONE
    assert await reservations.commit(before(small), small) is Outcome.DONE


async def test_a_deployment_over_its_quota_gets_a_smaller_candidate_or_fails_with_the_quotas_words(
    redis_url: str,
) -> None:
    allocators = Allocators(redis_url, quotas=QUOTAS)
    await allocators.tell(report("a", 40, 40, 40, 200))
    large, small = candidate(pp=3, stage=memory(layer=4)), candidate(pp=1, stage=memory(layer=4))
    plan = computed(large, small, deployment_id=UUID(int=1))
    (order,) = of_type(PlacementReserved, await allocators.tell(plan))
    assert len(order.placement.stages) == 1
    (failure,) = of_type(DeploymentFailed, await allocators.tell(computed(large, deployment_id=UUID(int=2))))
    assert failure.reason is FailureReason.QUOTA_EXCEEDED
    assert "tenant default may hold 2 GPU(s)" in failure.detail
    two = candidate(pp=2, stage=memory(layer=4))
    (failure,) = of_type(DeploymentFailed, await allocators.tell(computed(two, large, deployment_id=UUID(int=3))))
    assert "hold 1 GPU(s) and this one wants 2 GPU(s)" in failure.detail, "the candidate that is nearest to the quota"
    (drain,) = of_type(DeploymentDraining, await allocators.tell(ReleaseAccepted(deployment_id=UUID(int=1))))
    await allocators.tell(stopped(drain))
    assert [key async for key in allocators.redis.scan_iter("maveriq:allocator:tenant:*")] == []
    await allocators.redis.aclose()


async def test_headroom_stays_free_on_a_nodes_gpus_together_whichever_are_taken(redis: Store) -> None:
    inventory = Inventory(redis, parse_headroom("a=20B;*=1B"))
    await inventory.report(reported("a", 100, 60))
    reservations = Reservations(redis)
    whole, most = holding(uuid4(), ("a", {"a/0": 100})), holding(uuid4(), ("a", {"a/1": 40}))
    more, less = holding(uuid4(), ("a", {"a/1": 1})), holding(uuid4(), ("a", {"a/0": 50}))
    (node,) = await inventory.snapshot()
    assert node.fragments().spare_bytes == 140
    assert await reservations.commit(before(whole), whole) is Outcome.DONE
    assert await reservations.commit(before(most), most) is Outcome.DONE
    assert await reservations.commit(before(more), more) is Outcome.TAKEN
    (node,) = await inventory.snapshot()
    assert ([f.free_bytes for f in node.fragments().fragments], node.fragments().spare_bytes) == ([0, 20], 0)
    ended = lifecycle.stopped(lifecycle.released(whole), whole.held[0].placement.token)
    assert await reservations.commit(Loaded(1, whole), ended) is Outcome.DONE
    assert await reservations.commit(before(less), less) is Outcome.DONE


async def test_what_others_take_of_a_node_leaves_its_headroom_as_it_is(redis: Store) -> None:
    inventory = Inventory(redis, parse_headroom("20B"))
    await inventory.report(reported("a", 100, 60, foreign=[30, 60]))
    (node,) = await inventory.snapshot()
    assert node.fragments().spare_bytes == 50
    reservations = Reservations(redis)
    more, most = holding(uuid4(), ("a", {"a/0": 51})), holding(uuid4(), ("a", {"a/0": 50}))
    assert await reservations.commit(before(more), more) is Outcome.TAKEN
    assert await reservations.commit(before(most), most) is Outcome.DONE


async def test_a_deployment_that_only_headroom_keeps_out_is_told_so_and_calibrations_keep_it_too(
    redis_url: str,
) -> None:
    allocators = Allocators(redis_url, headroom=parse_headroom("20B"))
    await allocators.tell(report("a", 90, 5))
    (failure,) = of_type(DeploymentFailed, await allocators.tell(computed(deployment_id=UUID(int=1))))
    assert "80 B would fit the GPUs of a, but of the 95 B free on them 20 B stay free (MAVERIQ_HEADROOM)" in (
        failure.detail
    )
    asked = MemoryRequested(hold_id=UUID(int=7), rig="r", gpu_type="A6000", bytes=76, keep_s=60)
    (refused,) = of_type(MemoryHeld, await allocators.tell(asked))
    assert (refused.gpu, refused.largest_bytes) == (None, 75)
    assert "MAVERIQ_HEADROOM" in refused.problem
    smaller = asked.model_copy(update={"bytes": 75})
    (lent,) = of_type(MemoryHeld, await allocators.tell(smaller))
    assert lent.gpu == "a/0"
    await allocators.redis.aclose()


async def test_drift_is_told_once_until_it_is_over_and_what_drifted_is_not_offered(redis_url: str) -> None:
    allocators = Allocators(redis_url)
    gib = 2**30

    async def drifts(own: int, number: int) -> list[MemoryDrifted]:
        gpu = Gpu(id="a/0", gpu_type="A6000", total_bytes=10 * gib, foreign_bytes=0, own_bytes=own)
        message = report("a", 1, number=number).model_copy(update={"gpus": (gpu,)})
        return of_type(MemoryDrifted, await allocators.tell(message))

    assert await drifts(0, 1) == []
    (first,) = await drifts(4 * gib, 2)
    assert (first.gpu, first.reserved_bytes, first.own_bytes) == ("a/0", 0, 4 * gib)
    (node,) = await Inventory(allocators.redis).snapshot()
    assert [fragment.free_bytes for fragment in node.fragments().fragments] == [6 * gib]
    assert await drifts(4 * gib, 2) == [first]  # the same report again
    assert await drifts(5 * gib, 3) == []
    assert await drifts(0, 4) == []
    assert len(await drifts(4 * gib, 5)) == 1
    await allocators.redis.aclose()
