"""The worker as its neighbours see it: messages in, messages out, through JSON, on the in-process bus."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY

from maveriq.bus import publish_until_kept
from maveriq.bus.envelope import Envelope
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.contracts import (
    ConfirmationRequested,
    DeploymentDraining,
    FinishReason,
    Lane,
    Message,
    MessageRefused,
    NodeReported,
    NodeStarted,
    Placement,
    PlacementConfirmed,
    PlacementReserved,
    Precision,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
    ServedTime,
    ServiceTimed,
)
from maveriq.engine_version import engine_version
from maveriq.settings import BadSetting
from maveriq.topology import EXCHANGE, WORKER
from maveriq_worker.__main__ import run, serve
from maveriq_worker.devices import CpuDevices
from maveriq_worker.engine import EngineFailed
from maveriq_worker.settings import Settings
from tests.fakes import FACTS
from tests.unit.worker.engine_double import NODE, Heard, SteppedEngine, placement, request, until

M = TypeVar("M", bound=Message)

MIB = 2**20


@dataclass
class Scene:
    """A worker, and beside it a producer and whoever else listens."""

    broker: InProcessBroker
    outside: InProcessBus
    bus: InProcessBus
    engines: list[SteppedEngine]
    deployment_id: UUID
    heard: Heard = field(default_factory=Heard)
    serving: "asyncio.Task[None] | None" = None

    def said(self, kind: type[M]) -> list[M]:
        """What the worker published of one kind, as its neighbours decode it."""
        return [message for message in self.heard.messages if isinstance(message, kind)]

    async def hears(self, kind: type[M], number: int = 1) -> M:
        await until(lambda: len(self.said(kind)) >= number)
        return self.said(kind)[number - 1]

    async def reserve(self, where: Placement | None = None) -> None:
        where = where or placement()
        await self.outside.publish(PlacementReserved(deployment_id=self.deployment_id, node=NODE, placement=where))

    async def drain(self, token: str = "token-1", replica: int = 0) -> None:
        await self.outside.publish(
            DeploymentDraining(deployment_id=self.deployment_id, node=NODE, replica=replica, token=token)
        )

    def new_engine(self) -> SteppedEngine:
        fresh = SteppedEngine()
        self.prepare(fresh)
        self.engines.append(fresh)
        return fresh

    def prepare(self, engine: SteppedEngine) -> None:
        """Tests replace it."""

    async def stop(self) -> None:
        if self.serving is not None:
            self.serving.cancel()
            await asyncio.wait({self.serving})


@pytest.fixture
async def scene(broker: InProcessBroker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr("maveriq_worker.replica.DRAIN_QUIET_S", 0.05)
    made = Scene(broker, InProcessBus(broker), InProcessBus(broker), [], uuid4())
    ears = await made.outside.mailbox(made.heard)
    for message in WORKER.emits:
        await ears.bind(message.topic)
    await made.outside.open_requests(made.deployment_id)
    start(made)
    await made.hears(NodeReported)
    yield made
    await made.stop()
    await made.bus.close()
    await made.outside.close()


def start(scene: Scene) -> None:
    env = {"MAVERIQ_NODE": NODE, "MAVERIQ_DEVICES": "cpu:0=300MiB,cpu:1=220MiB", "MAVERIQ_REPORT_S": "0.05"}
    settings = Settings.from_env(env)
    devices = CpuDevices(NODE, settings.cpu_devices, settings.threads_per_stage)
    scene.serving = asyncio.create_task(serve(scene.bus, settings, devices, lambda: scene.new_engine()))


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


async def test_a_placement_on_gpus_that_are_not_here_fails_by_name(scene: Scene) -> None:
    await scene.reserve(placement(gpus=(f"{NODE}/cpu:0", "GPU-elsewhere")))
    failed = await scene.hears(ReplicaFailed)
    assert "GPU-elsewhere" in failed.detail
    assert failed.token == "token-1"
    assert not scene.engines


async def test_a_placement_for_another_engine_fails_by_name(scene: Scene) -> None:
    await scene.reserve(placement(engine="trtllm"))
    assert "trtllm" in (await scene.hears(ReplicaFailed)).detail


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


async def test_a_device_is_reported_busy_while_a_replica_on_it_generates(scene: Scene) -> None:
    await scene.reserve()
    await scene.hears(ReplicaReady)
    mailbox = await scene.outside.mailbox(Heard())
    await scene.outside.submit(request(scene.deployment_id), reply_to=mailbox.address)
    await until(lambda: any(gpu.utilisation for gpu in scene.said(NodeReported)[-1].gpus))
    used, unused = scene.said(NodeReported)[-1].gpus
    assert 0 < (used.utilisation or 0) < 1
    assert unused.utilisation == 0


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


def raw(scene: Scene, **changes: object) -> bytes:
    body = PlacementReserved(deployment_id=scene.deployment_id, node=NODE, placement=placement())
    return json.dumps(body.model_dump(mode="json") | changes).encode()


async def test_malformed_placements_are_refused_to_their_sender_and_the_next_is_handled(scene: Scene) -> None:
    answers = Heard()
    mailbox = await scene.outside.mailbox(answers)
    topic = PlacementReserved.topic
    for body, sent_as in (
        (b"{not json", topic),
        (raw(scene, deployment_id="seven"), topic),
        (raw(scene, placement={}), topic),
        (raw(scene), "placement.reserved.v9"),
    ):
        envelope = Envelope(body, topic=sent_as, message_id=str(uuid4()), reply_to=mailbox.address)
        scene.broker.post(envelope, f"{topic}.{NODE}", exchange=EXCHANGE)
    await until(lambda: len(answers.messages) == 4)
    fields = [m.faults[0].field for m in answers.messages if isinstance(m, MessageRefused)]
    assert fields[1] == "deployment_id"
    assert fields[2].startswith("placement.")
    assert fields[3] == "type"
    await scene.reserve()
    await scene.hears(ReplicaReady)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAVERIQ_NODE", "a.b"),
        ("MAVERIQ_ENGINE", "vllm"),
        ("MAVERIQ_DEVICES", "cpu:0"),
        ("MAVERIQ_DEVICES", "cpu:0=1GiB,cpu:0=1GiB"),
        ("MAVERIQ_DEVICES", "cpu:0=0B"),
        ("MAVERIQ_THREADS_PER_STAGE", "0"),
        ("MAVERIQ_REPORT_S", "soon"),
    ],
)
async def test_a_bad_setting_stops_the_start_with_its_name(name: str, value: str, bus: InProcessBus) -> None:
    with pytest.raises(BadSetting, match=name):
        await run(bus, {"MAVERIQ_DEVICES": "cpu:0=1GiB", name: value})


async def test_an_engine_that_is_not_installed_stops_the_start_and_says_how_to_get_it(
    bus: InProcessBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("maveriq_worker.engines.find_spec", lambda name: None)
    for engine in ("torch", "trtllm"):
        with pytest.raises(BadSetting, match=rf'MAVERIQ_ENGINE={engine}: .*pip install "maveriq-worker\[{engine}\]"'):
            await run(bus, {"MAVERIQ_DEVICES": "cpu:0=1GiB", "MAVERIQ_ENGINE": engine})


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


async def test_a_replica_that_does_not_fit_beside_what_still_runs_is_refused(scene: Scene) -> None:
    def large(token: str, replica: int) -> Placement:
        at = placement(token=token, replica=replica)
        return at.model_copy(
            update={"stages": tuple(stage.model_copy(update={"reserved_bytes": 200 * MIB}) for stage in at.stages)}
        )

    await scene.reserve(large("token-1", 0))
    await scene.hears(ReplicaReady)
    await scene.reserve(large("token-2", 1))
    refused = await scene.hears(ReplicaFailed)
    assert refused.token == "token-2"
    assert "held by what still runs" in refused.detail
    assert len(scene.engines) == 1
    await scene.reserve(large("token-3", 0))  # takes the place of the first
    assert (await scene.hears(ReplicaReady, 2)).token == "token-3"
