"""Bytes held in Redis: all or nothing, checked at the moment of reserving, given back once."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.contracts import MemoryRequested, Stage
from maveriq_allocator import keys, lifecycle
from maveriq_allocator.choosing import Choice, Seat
from maveriq_allocator.holds import Holds, Place
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.record import Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from maveriq_allocator.store import Store, connect
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed, reported

GIB = 2**30


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Store]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def inventory(redis: Store) -> Inventory:
    return Inventory(redis)


@pytest.fixture
def reservations(redis: Store) -> Reservations:
    return Reservations(redis)


def holding(deployment_id: UUID, *seats: tuple[str, dict[str, int]]) -> Record:
    """A record that holds these bytes of these GPUs, one replica a node."""
    plan = computed(candidate(), deployment_id=deployment_id)
    choice = Choice(0, tuple(Seat(node, stages(held)) for node, held in seats))
    return lifecycle.placed(Record(deployment_id=deployment_id), plan, choice)


def stages(held: dict[str, int]) -> tuple[Stage, ...]:
    return tuple(Stage(gpus=(gpu,), num_layers=1, reserved_bytes=num_bytes) for gpu, num_bytes in held.items())


def blank(deployment_id: UUID = DEPLOYMENT) -> Loaded:
    return Loaded(0, Record(deployment_id=deployment_id))


async def free(inventory: Inventory) -> dict[str, int]:
    return {state.gpu.id: state.free_bytes for node in await inventory.snapshot() for state in node.gpus}


async def test_what_is_held_is_no_longer_free(inventory: Inventory, reservations: Reservations) -> None:
    await inventory.report(reported("a", 80 * GIB, 48 * GIB, foreign=[GIB]))
    record = holding(DEPLOYMENT, ("a", {"a/0": 79 * GIB, "a/1": 48 * GIB - 1}))
    assert await reservations.commit(blank(), record) is Outcome.DONE
    assert await free(inventory) == {"a/0": 0, "a/1": 1}
    assert await reservations.load(DEPLOYMENT) == Loaded(1, record)


async def test_one_gpu_too_full_leaves_every_other_untouched(inventory: Inventory, reservations: Reservations) -> None:
    await inventory.report(reported("a", 100, 100))
    await inventory.report(reported("b", 100, 100, foreign=[0, 1]))
    record = holding(DEPLOYMENT, ("a", {"a/0": 100, "a/1": 100}), ("b", {"b/0": 100, "b/1": 100}))
    assert await reservations.commit(blank(), record) is Outcome.TAKEN
    assert await free(inventory) == {"a/0": 100, "a/1": 100, "b/0": 100, "b/1": 99}
    assert (await reservations.load(DEPLOYMENT)).version == 0


async def test_two_replicas_on_one_gpu_count_together(inventory: Inventory, reservations: Reservations) -> None:
    await inventory.report(reported("a", 100))
    assert (
        await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60}), ("a", {"a/0": 41}))) is Outcome.TAKEN
    )
    assert (
        await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60}), ("a", {"a/0": 40}))) is Outcome.DONE
    )


@pytest.mark.parametrize("gpu", ["a/7", "b/0"], ids=["unknown", "of another node"])
async def test_a_gpu_that_the_node_does_not_report_is_not_reserved(
    inventory: Inventory, reservations: Reservations, gpu: str
) -> None:
    await inventory.report(reported("a", 100))
    await inventory.report(reported("b", 100))
    assert await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {gpu: 1}))) is Outcome.TAKEN


async def test_a_node_that_never_reported_is_not_reserved(reservations: Reservations) -> None:
    assert await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 1}))) is Outcome.TAKEN


async def test_a_change_from_an_old_version_is_refused(inventory: Inventory, reservations: Reservations) -> None:
    await inventory.report(reported("a", 100))
    record = holding(DEPLOYMENT, ("a", {"a/0": 60}))
    assert await reservations.commit(blank(), record) is Outcome.DONE
    assert await reservations.commit(blank(), record) is Outcome.STALE
    assert await free(inventory) == {"a/0": 40}


async def test_bytes_are_given_back_once(inventory: Inventory, reservations: Reservations) -> None:
    await inventory.report(reported("a", 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60})))
    before = await reservations.load(DEPLOYMENT)
    after = lifecycle.stopped(before.record, before.record.held[0].placement.token)
    assert await reservations.commit(before, after) is Outcome.DONE
    assert await reservations.commit(before, after) is Outcome.STALE
    assert await free(inventory) == {"a/0": 100}


async def test_a_replica_moves_within_the_bytes_that_it_gives_back(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 100, 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 100})))
    before = await reservations.load(DEPLOYMENT)
    choice = Choice(0, (Seat("a", stages({"a/0": 70, "a/1": 30})),))
    after = lifecycle.moved(before.record, computed(), before.record.held[0], choice)
    assert await reservations.commit(before, after) is Outcome.DONE
    assert await free(inventory) == {"a/0": 30, "a/1": 70}


async def test_the_plan_is_kept_until_the_deployment_ends(
    inventory: Inventory, reservations: Reservations, redis: Store
) -> None:
    await inventory.report(reported("a", 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60})), computed())
    assert await reservations.plan(DEPLOYMENT) == computed()
    before = await reservations.load(DEPLOYMENT)
    draining = lifecycle.released(before.record)
    await reservations.commit(before, draining)
    assert await reservations.plan(DEPLOYMENT) == computed()
    assert await redis.ttl(keys.deployment(DEPLOYMENT)) == -1
    ended = lifecycle.stopped(draining, draining.held[0].placement.token)
    await reservations.commit(await reservations.load(DEPLOYMENT), ended)
    assert await reservations.plan(DEPLOYMENT) is None
    assert await redis.ttl(keys.deployment(DEPLOYMENT)) > 0
    assert (await reservations.load(DEPLOYMENT)).record == ended


async def test_of_many_that_want_the_same_bytes_as_many_get_them_as_fit(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 1000, 1000))
    wanted = [holding(uuid4(), ("a", {"a/0": 90, "a/1": 90})) for _ in range(30)]
    outcomes = await asyncio.gather(*(reservations.commit(blank(r.deployment_id), r) for r in wanted))
    assert outcomes.count(Outcome.DONE) == 11
    assert await free(inventory) == {"a/0": 10, "a/1": 10}


async def test_a_vanished_gpu_is_not_offered_and_keeps_what_is_held_when_it_returns(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 100, 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/1": 60})))
    await inventory.report(reported("a", 100))
    assert await free(inventory) == {"a/0": 100}
    assert await inventory.deployments("a") == [DEPLOYMENT]
    await inventory.report(reported("a", 100, 100))
    assert await free(inventory) == {"a/0": 100, "a/1": 40}


async def test_foreign_bytes_that_grow_over_ours_leave_nothing_free(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60})))
    await inventory.report(reported("a", 100, foreign=[70]))
    assert await free(inventory) == {"a/0": 0}
    assert await reservations.commit(blank(uuid4()), holding(uuid4(), ("a", {"a/0": 1}))) is Outcome.TAKEN


async def test_a_snapshot_takes_what_one_replica_holds_for_free(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 100))
    await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {"a/0": 60}), ("a", {"a/0": 15})))
    (state,) = await inventory.nodes(["a", "never there"])
    assert [f.free_bytes for f in state.fragments().fragments] == [25]
    assert [f.free_bytes for f in state.fragments((DEPLOYMENT, 0)).fragments] == [85]


@pytest.mark.parametrize("name", ["GPU-7d9c|odd", "a b", "nœud/cpu:0"])
async def test_any_gpu_id_can_be_held(inventory: Inventory, reservations: Reservations, name: str) -> None:
    report = reported("a", 100)
    renamed = report.gpus[0].model_copy(update={"id": name})
    await inventory.report(report.model_copy(update={"gpus": (renamed,)}))
    assert await reservations.commit(blank(), holding(DEPLOYMENT, ("a", {name: 60}))) is Outcome.DONE
    assert await free(inventory) == {name: 40}


async def test_a_choice_is_refused_once_anything_changed_on_a_gpu_that_it_takes(
    inventory: Inventory, reservations: Reservations
) -> None:
    await inventory.report(reported("a", 100, 100, 100))
    first = holding(uuid4(), ("a", {"a/0": 10}))
    seen = await inventory.snapshot()
    assert await reservations.commit(blank(first.deployment_id), first, seen=seen) is Outcome.DONE
    there, elsewhere = holding(uuid4(), ("a", {"a/0": 10})), holding(uuid4(), ("a", {"a/1": 10, "a/2": 10}))
    assert await reservations.commit(blank(there.deployment_id), there, seen=seen) is Outcome.MOVED
    assert await reservations.commit(blank(elsewhere.deployment_id), elsewhere, seen=seen) is Outcome.DONE
    assert await reservations.commit(blank(there.deployment_id), there) is Outcome.DONE  # whatever has changed


async def test_bytes_given_back_held_for_a_calibration_or_taken_by_others_change_a_gpu(
    inventory: Inventory, reservations: Reservations, redis: Store
) -> None:
    await inventory.report(reported("a", 100))
    versions = [await version(inventory)]
    record = holding(DEPLOYMENT, ("a", {"a/0": 60}))
    await reservations.commit(blank(), record)
    versions.append(await version(inventory))
    await reservations.commit(Loaded(1, record), lifecycle.stopped(record, record.held[0].placement.token))
    versions.append(await version(inventory))
    hold = MemoryRequested(hold_id=DEPLOYMENT, rig="r", gpu_type="A6000", bytes=10, keep_s=60)
    await Holds(redis).take(hold, Place(node="a", gpu="a/0"))
    versions.append(await version(inventory))
    await Holds(redis).free(DEPLOYMENT)
    versions.append(await version(inventory))
    await inventory.report(reported("a", 100, foreign=[1]))
    versions.append(await version(inventory))
    assert len(set(versions)) == len(versions)
    await inventory.report(reported("a", 100, foreign=[1]))
    assert await version(inventory) == versions[-1]  # the same report changes nothing


async def version(inventory: Inventory) -> str:
    (node,) = await inventory.snapshot()
    return node.versions["a/0"]
