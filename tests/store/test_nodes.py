"""Nodes are read and decoded again only where something changed, and then always."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.contracts import MemoryRequested, NodeReported, Running, Stage
from maveriq_allocator import keys
from maveriq_allocator.holds import Holds, Place
from maveriq_allocator.inventory import Inventory
from maveriq_allocator.record import Record
from maveriq_allocator.reservations import Loaded, Outcome, Reservations
from maveriq_allocator.store import Store, connect
from tests.store.test_reservations import holding
from tests.unit.allocator.plans import DEPLOYMENT, reported


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Store]:
    client = connect(redis_url)
    yield client
    await client.aclose()


def running_on_two(node: str, other: str) -> NodeReported:
    """A replica that no record knows, led from one node and reaching the other."""
    stages = (
        Stage(gpus=(f"{node}/0",), num_layers=4, reserved_bytes=20),
        Stage(gpus=(f"{other}/0",), num_layers=4, reserved_bytes=30, node=other),
    )
    deployment_id = uuid4()
    told = Running(deployment_id=deployment_id, replica=0, token=f"{deployment_id}.0.0", stages=stages)
    return reported(node, 80).model_copy(update={"running": (told,), "number": 2})


async def test_a_snapshot_shows_whatever_others_changed(redis: Store) -> None:
    inventory, others = Inventory(redis), Inventory(redis)
    reservations, holds = Reservations(redis), Holds(redis)

    async def is_current() -> None:
        assert await inventory.snapshot() == await Inventory(redis).snapshot()

    await others.report(reported("a", 80))
    await others.report(reported("b", 80, 80))
    await is_current()
    await others.report(reported("a", 80, foreign=[11]))
    await is_current()
    record, blank = holding(DEPLOYMENT, ("a", {"a/0": 40}), ("b", {"b/1": 70})), Record(deployment_id=DEPLOYMENT)
    assert await reservations.commit(Loaded(0, blank), record) is Outcome.DONE
    await is_current()
    assert await reservations.commit(Loaded(1, record), blank) is Outcome.DONE
    await is_current()
    wanted = MemoryRequested(hold_id=uuid4(), rig="r", gpu_type="A6000", bytes=9, keep_s=60)
    assert await holds.take(wanted, Place(node="b", gpu="b/0")) is not None
    await is_current()
    assert await holds.free(wanted.hold_id) is not None
    await is_current()
    await others.report(running_on_two("a", "b"))
    assert [len(state.holdings) for node in await inventory.snapshot() for state in node.gpus] == [1, 1, 0]
    await is_current()
    await others.report(reported("a", 80).model_copy(update={"running": (), "number": 3}))
    assert [len(state.holdings) for node in await inventory.snapshot() for state in node.gpus] == [0, 0, 0]
    await is_current()


async def test_a_redis_that_was_emptied_is_not_taken_for_what_it_was(redis: Store) -> None:
    inventory = Inventory(redis)
    await inventory.report(reported("a", 80))
    await inventory.report(reported("b", 80))
    assert [node.name for node in await inventory.snapshot()] == ["a", "b"]
    await redis.flushall()
    assert list(await inventory.snapshot()) == []
    await Inventory(redis).report(reported("a", 90))
    (node,) = await inventory.snapshot()
    assert node.gpus[0].gpu.total_bytes == 90


async def test_a_node_that_others_reached_before_it_reported_anew_is_not_there(redis: Store) -> None:
    """Redis was emptied; its last report is of before."""
    inventory = Inventory(redis)
    for name in ("a", "b"):
        await inventory.report(reported(name, 80))
    assert [node.name for node in await inventory.snapshot()] == ["a", "b"]
    await redis.flushall()
    await Inventory(redis).report(running_on_two("a", "b"))
    assert [node.name for node in await inventory.snapshot()] == ["a"]


async def test_nodes_that_did_not_change_are_not_read_again(redis: Store) -> None:
    inventory, reservations = Inventory(redis), Reservations(redis)
    for number in range(20):
        await inventory.report(reported(f"n{number}", 80))

    async def num_read() -> int:
        before = (await redis.info("commandstats")).get("cmdstat_hgetall", {}).get("calls", 0)
        await inventory.snapshot()
        return int((await redis.info("commandstats"))["cmdstat_hgetall"]["calls"]) - int(before)

    assert await num_read() == 1 + 2 * 20
    assert await num_read() == 1
    record = holding(UUID(int=1), ("n3", {"n3/0": 40}))
    assert await reservations.commit(Loaded(0, Record(deployment_id=UUID(int=1))), record) is Outcome.DONE
    assert await num_read() == 1 + 2
    await redis.hincrby(keys.WATCH, "listened_ms", 61_000)  # silence changes nothing that is kept, and still shows
    snapshot = await inventory.snapshot()
    assert snapshot.heard(60.0) == []
