"""What a worker says of itself: that it started, what it has and runs, what serving took, what it was placed with."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from maveriq.bus import publish_until_kept
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    ConfirmationRequested,
    Message,
    NodeReported,
    NodeStarted,
    Placement,
    PlacementConfirmed,
    Precision,
    ReplicaReady,
    ReplicaStopped,
    ServedTime,
    ServiceTimed,
)
from maveriq.engine_version import engine_version
from maveriq.topology import WORKER
from tests.contract.worker_scene import MIB, Scene, start
from tests.fakes import FACTS
from tests.unit.worker.engine_double import NODE, Heard, placement, request, until


async def test_a_worker_says_that_it_started_and_then_what_it_has(scene: Scene) -> None:
    assert [type(message) for message in scene.heard.messages[:2]] == [NodeStarted, NodeReported]
    report = scene.said(NodeReported)[0]
    assert (report.node, report.engine) == (NODE, "torch")
    assert [(gpu.id, gpu.gpu_type, gpu.total_bytes, gpu.foreign_bytes) for gpu in report.gpus] == [
        (f"{NODE}/cpu:0", "cpu-1t", 300 * MIB, 0),
        (f"{NODE}/cpu:1", "cpu-1t", 220 * MIB, 0),
    ]


async def test_a_worker_listens_before_it_says_that_it_started(broker: InProcessBroker) -> None:
    queues_at_start: list[bool] = []

    class SlowToDeclare(InProcessBus):
        async def run(self, *given: Any, **named: Any) -> None:
            await asyncio.sleep(0.05)
            await super().run(*given, **named)

        async def publish(self, message: Message, **named: Any) -> None:
            if isinstance(message, NodeStarted):
                queues_at_start.extend(WORKER.queue(kind, NODE) in broker.queues for kind in WORKER.consumes)
            await super().publish(message, **named)

    scene = Scene(broker, InProcessBus(broker), SlowToDeclare(broker), [], uuid4())
    start(scene)
    await until(lambda: queues_at_start)
    assert queues_at_start == [True] * len(WORKER.consumes)
    await scene.stop()


async def test_what_a_worker_says_when_it_starts_is_said_until_somebody_takes_it(
    bus: InProcessBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maveriq.bus.insisting.FIRST_DELAY_S", 0.01)
    saying = asyncio.create_task(publish_until_kept(bus, NodeStarted(node=NODE)))
    await asyncio.sleep(0.03)
    heard = Heard()
    ears = await bus.mailbox(heard)
    await ears.bind(NodeStarted.topic)
    await saying
    await until(lambda: len(heard.messages) == 1)


async def test_reports_name_what_starts_serves_and_drains_and_are_numbered(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    before = len(scene.said(NodeReported))
    report = await scene.hears(NodeReported, before + 2)
    (running,) = report.running or ()
    at = placement()
    assert (running.deployment_id, running.replica, running.token) == (scene.deployment_id, 0, "token-1")
    assert running.stages == at.stages
    numbers = [one.number or 0 for one in scene.said(NodeReported)]
    assert numbers == sorted(set(numbers))
    await scene.drain()
    await scene.hears(ReplicaStopped)
    before = len(scene.said(NodeReported))
    assert (await scene.hears(NodeReported, before + 2)).running == ()


async def test_a_device_is_reported_busy_while_a_replica_on_it_generates(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    mailbox = await scene.outside.mailbox(Heard())
    await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address)
    await until(lambda: any(gpu.utilisation for gpu in scene.said(NodeReported)[-1].gpus))
    used, unused = scene.said(NodeReported)[-1].gpus
    assert 0 < (used.utilisation or 0) < 1
    assert unused.utilisation == 0


async def test_prometheus_reads_what_each_replica_serves_for_as_long_as_it_does(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    client = Heard()
    mailbox = await scene.outside.mailbox(client)
    for _ in range(2):
        await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address)
    await until(lambda: len(scene.engines[0].asked) == 2)
    of = {"deployment": str(scene.deployment_id), "replica": "0", "gpu_type": "cpu-1t", "model": "m"}
    read = REGISTRY.get_sample_value
    assert read("maveriq_requests_running", of) == 2
    await until(lambda: scene.engines[0].step() or sum(c.finish_reason is not None for c in client.chunks) == 2)
    await until(lambda: read("maveriq_requests_total", of | {"finish_reason": "length"}) == 2)
    assert read("maveriq_output_tokens_total", of) == 6
    assert read("maveriq_ttft_seconds_count", of) == read("maveriq_tpot_seconds_count", of) == 2
    assert read("maveriq_predicted_seconds", of | {"what": "ttft"})
    await scene.drain()
    await scene.hears(ReplicaStopped)
    assert read("maveriq_requests_running", of) is None


TIME = ServedTime(batch=2, input_tokens=40, output_tokens=8, decode_ms=12.5, count=9)


async def test_a_replica_that_served_says_once_what_its_passes_took(scene: Scene) -> None:
    where = placement(gpus=(f"{NODE}/cpu:0", f"{NODE}/cpu:1"), facts=FACTS)
    await scene.reserve(where)
    await scene.hears(ReplicaReady)
    scene.engines[0].timed = (TIME,)
    said = await scene.hears(ServiceTimed)
    configuration = where.candidate.configuration
    assert said == ServiceTimed(
        deployment_id=scene.deployment_id, node=NODE, engine="torch", engine_version=engine_version("torch"),
        gpu_types=("cpu-1t", "cpu-1t"), facts=FACTS, precision=configuration.precision,
        kv_precision=configuration.kv_precision, tp=1, layers=(1, 1), times=(TIME,),
    )  # fmt: skip
    await scene.hears(NodeReported, len(scene.said(NodeReported)) + 2)
    assert len(scene.said(ServiceTimed)) == 1


async def test_a_replica_that_is_idle_or_whose_model_nobody_described_says_no_times(scene: Scene) -> None:
    await scene.reserve(placement(facts=FACTS))
    await scene.reserve(placement(token="token-2", replica=1, gpus=(f"{NODE}/cpu:1",)))
    await scene.hears(ReplicaReady, 2)
    scene.engines[1].timed = (TIME,)
    await scene.hears(NodeReported, len(scene.said(NodeReported)) + 3)
    assert not scene.said(ServiceTimed)


async def test_a_replica_says_with_its_times_how_many_layers_have_which_precision(scene: Scene) -> None:
    def planned(token: str, replica: int, *precisions: Precision) -> Placement:
        where = placement(token=token, replica=replica, gpus=(f"{NODE}/cpu:0", f"{NODE}/cpu:1"), facts=FACTS)
        pairs = zip(where.stages, precisions, strict=True)
        stages = tuple(stage.model_copy(update={"precisions": (each,)}) for stage, each in pairs)
        return where.model_copy(update={"stages": stages})

    await scene.reserve(planned("token-1", 0, Precision.INT8, Precision.INT8))
    await scene.reserve(planned("token-2", 1, Precision.FP32, Precision.INT8))
    await scene.hears(ReplicaReady, 2)
    for engine in scene.engines[:2]:
        engine.timed = (TIME,)
    await scene.hears(ServiceTimed, 2)
    alike, mixed = scene.said(ServiceTimed)[:2]
    assert (alike.precision, alike.kv_precision, dict(alike.mix)) == (
        Precision.FP32,
        Precision.FP32,
        {Precision.INT8: 2},
    )
    assert dict(mixed.mix) == {Precision.FP32: 1, Precision.INT8: 1}


async def test_what_was_placed_is_confirmed_when_asked_until_it_is_told_to_stop(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    asked = ConfirmationRequested(node=NODE, tokens=("token-1", "token-9"))
    await scene.outside.publish(asked)
    confirmed = await scene.hears(PlacementConfirmed)
    assert (confirmed.deployment_id, confirmed.placement) == (scene.deployment_id, placement())
    await scene.drain()
    await scene.hears(ReplicaStopped)
    await scene.outside.publish(asked)
    await scene.reserve(placement(token="token-2"))
    await scene.hears(ReplicaReady, 2)
    assert len(scene.said(PlacementConfirmed)) == 1
