"""The worker as its neighbours see it: messages in, messages out, through JSON, on the in-process bus."""

import asyncio

import pytest

from maveriq.contracts import (
    FinishReason,
    Lane,
    NodeStarted,
    Precision,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq_worker.engine import EngineFailed
from tests.contract.worker_scene import Scene, start
from tests.unit.worker.engine_double import NODE, Heard, SteppedEngine, placement, request, until


async def test_a_placement_starts_a_replica_that_answers_requests(scene: Scene) -> None:
    await scene.reserve(placement(gpus=(f"{NODE}/cpu:1", f"{NODE}/cpu:0")))
    ready = await scene.hears(ReplicaReady)
    assert (ready.deployment_id, ready.replica, ready.token, ready.node) == (scene.deployment_id, 0, "token-1", NODE)
    (launch,) = scene.engines[0].launches
    assert [stage.devices[0].gpu for stage in launch.stages] == [f"{NODE}/cpu:1", f"{NODE}/cpu:0"]
    assert [stage.devices[0].index for stage in launch.stages] == [1, 0]

    asked, client = request(scene.deployment_id), Heard()
    mailbox = await scene.outside.mailbox(client)
    await scene.outside.submit(asked, reply_to=mailbox.address)
    await until(lambda: scene.engines[0].step() or len(client.chunks) == 3)
    assert client.chunks[-1].finish_reason is FinishReason.LENGTH


async def test_a_replica_of_a_fleet_answers_its_own_types_requests_and_helps_out_others(scene: Scene) -> None:
    await scene.outside.open_requests(scene.deployment_id, ["own", "other"])
    lanes = (Lane(gpu_type="own"), Lane(gpu_type="other", rank=1))
    await scene.reserve(placement().model_copy(update={"lanes": lanes}))
    await scene.hears(ReplicaReady)
    client = Heard()
    mailbox = await scene.outside.mailbox(client)
    for gpu_type in ("own", "other", None):
        await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address, gpu_type=gpu_type)
    await until(lambda: scene.engines[0].step() or len([c for c in client.chunks if c.finish_reason]) == 3)


async def test_a_placements_layers_reach_the_engine_in_their_precisions(scene: Scene) -> None:
    where = placement(gpus=(f"{NODE}/cpu:0", f"{NODE}/cpu:1"))
    layers = ((Precision.INT4,), (Precision.INT8,))
    stages = tuple(
        stage.model_copy(update={"precisions": each}) for stage, each in zip(where.stages, layers, strict=True)
    )
    await scene.reserve(where.model_copy(update={"stages": stages}))
    await scene.hears(ReplicaReady)
    (launch,) = scene.engines[0].launches
    assert tuple(stage.precisions for stage in launch.stages) == layers


async def test_the_same_placement_twice_is_answered_twice_and_started_once(scene: Scene) -> None:
    await scene.reserve()
    await scene.reserve()
    await scene.hears(ReplicaReady, 2)
    await scene.reserve()
    await scene.hears(ReplicaReady, 3)
    assert len(scene.engines) == 1
    assert len(set(scene.said(ReplicaReady))) == 1


async def test_the_same_placement_while_it_loads_joins_the_start(scene: Scene) -> None:
    scene.prepare = lambda engine: engine.hold_start.clear()  # type: ignore[method-assign]
    await scene.reserve()
    await scene.reserve()
    await until(lambda: len(scene.engines) == 1)
    await asyncio.sleep(0.02)
    scene.engines[0].hold_start.set()
    await scene.hears(ReplicaReady, 2)
    assert len(scene.engines) == 1


async def test_another_token_for_the_same_replica_replaces_it(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    await scene.reserve(placement(token="token-2"))
    assert (await scene.hears(ReplicaReady, 2)).token == "token-2"
    assert scene.engines[0].num_stops > 0
    assert scene.engines[1].num_stops == 0
    await scene.reserve()  # the replaced one, handed out late
    assert (await scene.hears(ReplicaStopped)).token == "token-1"
    assert len(scene.engines) == 2


@pytest.mark.parametrize(
    ("error", "words"), [(EngineFailed("no memory"), "no memory"), (KeyError("lm_head"), "KeyError: 'lm_head'")]
)
async def test_an_engine_that_does_not_start_is_a_failed_replica_and_is_not_tried_again(
    scene: Scene, error: Exception, words: str
) -> None:
    def fail(engine: SteppedEngine) -> None:
        engine.start_error = error

    scene.prepare = fail  # type: ignore[method-assign]
    await scene.reserve()
    assert (await scene.hears(ReplicaFailed)).detail == words
    assert scene.engines[0].num_stops > 0
    await scene.reserve()
    await scene.hears(ReplicaFailed, 2)
    assert len(scene.engines) == 1


async def test_a_killed_engine_fails_the_replica_and_its_requests_are_answered_by_the_next(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    client = Heard()
    mailbox = await scene.outside.mailbox(client)
    for _ in range(3):
        await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address)
    await until(lambda: len(scene.engines[0].asked) == 2)
    scene.engines[0].die()
    failed = await scene.hears(ReplicaFailed)
    assert (failed.token, failed.detail) == ("token-1", "killed")
    assert client.chunks == []
    await scene.reserve(placement(token="token-2"))
    await until(lambda: len(scene.engines) == 2)
    await until(lambda: scene.engines[1].step() or sum(c.finish_reason is not None for c in client.chunks) == 3)


async def test_a_drain_answers_what_is_queued_and_then_says_stopped(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    client = Heard()
    mailbox = await scene.outside.mailbox(client)
    for _ in range(5):
        await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address)
    await scene.drain()
    await asyncio.sleep(0.01)
    assert not scene.said(ReplicaStopped)
    await until(lambda: scene.engines[0].step() or bool(scene.said(ReplicaStopped)))
    assert sum(c.finish_reason is not None for c in client.chunks) == 5
    assert scene.engines[0].num_stops > 0
    assert scene.said(ReplicaStopped)[0].token == "token-1"


async def test_a_replica_that_loads_is_drained_at_once_and_does_not_come_back(scene: Scene) -> None:
    scene.prepare = lambda engine: engine.hold_start.clear()  # type: ignore[method-assign]
    await scene.reserve()
    await until(lambda: len(scene.engines) == 1 and bool(scene.engines[0].launches))
    await scene.drain()
    await scene.hears(ReplicaStopped)
    assert scene.engines[0].num_stops > 0
    await scene.reserve()
    await asyncio.sleep(0.02)
    assert len(scene.engines) == 1
    assert not scene.said(ReplicaReady)


async def test_draining_what_does_not_run_here_says_stopped_and_holds_against_a_late_placement(scene: Scene) -> None:
    await scene.drain()
    await scene.hears(ReplicaStopped)
    await scene.reserve()
    await scene.hears(ReplicaStopped, 2)
    assert not scene.engines


async def test_draining_an_earlier_token_leaves_the_later_replica_alone(scene: Scene) -> None:
    await scene.reserve(placement(token="token-2"))
    await scene.hears(ReplicaReady)
    await scene.drain("token-1")
    await scene.hears(ReplicaStopped)
    assert scene.engines[0].num_stops == 0


async def test_replicas_of_one_deployment_live_apart(scene: Scene) -> None:
    await scene.reserve()
    await scene.reserve(placement(token="token-2", replica=1, gpus=(f"{NODE}/cpu:1",)))
    await scene.hears(ReplicaReady, 2)
    await scene.drain("token-2", replica=1)
    assert (await scene.hears(ReplicaStopped)).replica == 1
    assert sorted(engine.num_stops > 0 for engine in scene.engines) == [False, True]


async def test_a_worker_that_is_stopped_puts_its_requests_back_and_stops_its_engines_without_a_word(
    scene: Scene,
) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    client = Heard()
    mailbox = await scene.outside.mailbox(client)
    asked = request(scene.deployment_id)
    await scene.outside.submit(asked, reply_to=mailbox.address)
    await until(lambda: len(scene.engines[0].asked) == 1)
    await scene.stop()
    assert scene.engines[0].num_stops > 0
    assert not scene.said(ReplicaStopped)
    assert not scene.said(ReplicaFailed)
    assert client.chunks == []

    start(scene)
    await scene.hears(NodeStarted, 2)
    await scene.reserve()  # as the allocator does when it hears NodeStarted
    await until(lambda: len(scene.engines) == 2)
    await until(lambda: scene.engines[1].step() or len(client.of(asked.request_id)) == 3)
