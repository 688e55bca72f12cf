"""Ingress by its messages: JSON in, JSON out, over the bus that services run on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from maveriq.bus import Unroutable
from maveriq.bus.envelope import Envelope
from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import (
    AccuracyMeasured,
    AccuracyProgressed,
    DeploymentDraining,
    DeploymentFailed,
    DeploymentReleased,
    FailureReason,
    FingerprintMeasured,
    Gpu,
    GpuState,
    InventoryChanged,
    Message,
    Model,
    PlacementReserved,
    PlanComputed,
    PlanPreviewed,
    Precision,
    Priority,
    Provenance,
    ReplicaFailed,
    ReplicaReady,
    RequestSubmitted,
    VariantAccuracy,
)
from maveriq.inbox import RequestFailed
from maveriq.streams import Streams
from maveriq.topology import EXCHANGE, INGRESS
from maveriq_ingress.accuracies import Accuracies
from maveriq_ingress.accuracy_handlers import AccuracyHandlers
from maveriq_ingress.calibrations import Calibrations
from maveriq_ingress.dead_requests import answering
from maveriq_ingress.defrag_http import Defragmentations
from maveriq_ingress.handlers import Handlers
from maveriq_ingress.inventory import Inventories
from maveriq_ingress.models import Models
from maveriq_ingress.statuses import Statuses
from tests.fakes import ADMISSION, FACTS, FINGERPRINT, NOW, PLAN, placement
from tests.fleets import FLEET_PLAN, LARGE, SMALL, routed

SPY = "spy"
REPLIES = "replies"
ID = uuid4()


class Ingress:
    """The service behind its queues, seen from outside: bodies go in, bodies come out."""

    def __init__(self, broker: InProcessBroker) -> None:
        self._broker = broker
        topics = {message.topic for message in INGRESS.emits}
        broker.declare(QueueSpec(name=SPY, bindings=(*topics, *(f"{topic}.#" for topic in topics))))
        broker.declare(QueueSpec(name=REPLIES))

    async def send(self, topic: str, body: bytes | dict[str, Any], *, type_: str | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        envelope = Envelope(body=raw, topic=type_ or topic, message_id=str(uuid4()), reply_to=REPLIES)
        self._broker.post(envelope, topic, exchange=EXCHANGE)

    async def tell(self, message: Message) -> None:
        await self.send(message.routing_key, message.model_dump_json().encode(), type_=message.topic)

    async def emitted(self, *topics: str) -> list[dict[str, Any]]:
        """The next messages that ingress emits, which must be of these topics."""
        taken = await self._take(SPY, len(topics))
        assert [one.topic for one in taken] == list(topics)
        return [json.loads(one.body) for one in taken]

    async def refusal(self) -> dict[str, Any]:
        (refused,) = await self._take(REPLIES, 1)
        assert refused.topic == "message.refused.v1"
        found: dict[str, Any] = json.loads(refused.body)
        return found

    def silent(self) -> bool:
        return not self._broker.dead_letters(SPY)

    async def _take(self, queue: str, count: int) -> list[Envelope]:
        async with asyncio.timeout(5):
            while len(self._broker.dead_letters(queue)) < count:  # noqa: ASYNC110  # a broker has no event
                await asyncio.sleep(0.002)
        waiting = self._broker.queues[queue].waiting
        return [waiting.popleft().envelope for _ in range(count)]


@pytest.fixture
async def ingress(broker: InProcessBroker, bus: InProcessBus, redis_url: str) -> AsyncIterator[Ingress]:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        handlers = Handlers(
            Models(redis), Statuses(redis), Inventories(redis), Calibrations(redis), bus, answering(bus), lambda: NOW
        )
        accuracy = AccuracyHandlers(handlers.models, Accuracies(redis))
        defragmentations = Defragmentations(redis)
        serving = asyncio.ensure_future(bus.run(INGRESS, [*handlers.all(), *accuracy.all(), *defragmentations.all()]))
        await asyncio.sleep(0)
        seen = Ingress(broker)
        await seen.send("model.submitted.v1", {"model": {"name": "smol", "source": "HuggingFaceTB/SmolLM2-135M"}})
        (registered,) = await seen.emitted("model.registered.v1")
        assert registered["model"]["name"] == "smol"
        yield seen
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def intent(model: str = "smol", **more: Any) -> dict[str, Any]:
    return {"deployment_id": str(ID), "intent": {"model": model}} | more


async def test_an_intent_is_accepted_with_its_model_and_the_deployment_told(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    accepted, changed = await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    assert accepted["deployment_id"] == changed["deployment_id"] == str(ID)
    assert accepted["admission"]["model"]["source"] == "HuggingFaceTB/SmolLM2-135M"
    assert changed["deployment"]["state"] == "accepted"
    assert changed["deployment"]["intent"]["model"] == "smol"


async def test_its_request_queues_are_open_before_it_is_passed_on(ingress: Ingress, bus: InProcessBus) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await bus.submit(RequestSubmitted(deployment_id=ID, request_id=uuid4(), prompt="x"), reply_to=REPLIES)


async def test_asking_twice_is_asking_once(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    first = await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await ingress.send("intent.submitted.v1", intent())
    assert await ingress.emitted("intent.accepted.v1", "deployment.changed.v1") == first


async def test_asking_again_once_it_is_under_way_only_tells_how_it_stands(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await ingress.tell(PlanComputed(deployment_id=ID, admission=ADMISSION, plan=PLAN))
    await ingress.emitted("deployment.changed.v1")
    await ingress.send("intent.submitted.v1", intent())
    (changed,) = await ingress.emitted("deployment.changed.v1")
    assert changed["deployment"]["state"] == "planned"


async def test_an_id_in_use_is_refused_for_another_intent(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await ingress.send("intent.submitted.v1", intent(dry_run=True))
    (fault,) = (await ingress.refusal())["faults"]
    assert fault["field"] == "deployment_id"
    assert fault["remedy"] == "choose a new UUID"


async def test_an_unknown_model_is_refused_with_the_known_ones(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent("smoll"))
    (fault,) = (await ingress.refusal())["faults"]
    assert fault["field"] == "intent.model"
    assert "smol" in fault["remedy"]
    assert ingress.silent()


FACT_STATES: list[tuple[Message, str]] = [
    (
        FingerprintMeasured(deployment_id=ID, admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,)),
        "measured",
    ),
    (PlanComputed(deployment_id=ID, admission=ADMISSION, plan=PLAN), "planned"),
    (PlanPreviewed(deployment_id=ID, admission=ADMISSION, plan=PLAN), "planned"),
    (PlacementReserved(deployment_id=ID, node="n1", placement=placement(0, "t")), "reserved"),
    (ReplicaReady(deployment_id=ID, replica=0, token="t", node="n1", load_s=1), "ready"),
    (ReplicaFailed(deployment_id=ID, replica=0, token="t", node="n1", detail="died"), "ready"),
    (DeploymentDraining(deployment_id=ID, node="n1", replica=0, token="t"), "draining"),
    (DeploymentReleased(deployment_id=ID), "released"),
    (DeploymentFailed(deployment_id=ID, reason=FailureReason.NO_CAPACITY, detail="full"), "failed"),
]


async def test_every_fact_is_told_as_the_deployments_new_state(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    for fact, state in FACT_STATES:
        await ingress.tell(fact)
        (changed,) = await ingress.emitted("deployment.changed.v1")
        assert changed["deployment"]["state"] == state, fact.topic
    assert changed["deployment"]["failure"] == {"reason": "no_capacity", "detail": "full", "counteroffers": []}
    assert changed["deployment"]["placements"][0]["stages"][0]["num_layers"] == 18
    assert changed["deployment"]["plan"]["num_considered"] == PLAN.num_considered


async def test_a_release_is_accepted_and_told_again_when_asked_again(ingress: Ingress) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    for _ in range(2):
        await ingress.send("release.requested.v1", {"deployment_id": str(ID)})
        accepted, changed = await ingress.emitted("release.accepted.v1", "deployment.changed.v1")
        assert accepted == {"deployment_id": str(ID)}
        assert changed["deployment"]["state"] == "draining"
    await ingress.tell(DeploymentReleased(deployment_id=ID))
    await ingress.emitted("deployment.changed.v1")
    await ingress.send("release.requested.v1", {"deployment_id": str(ID)})
    (changed,) = await ingress.emitted("deployment.changed.v1")
    assert changed["deployment"]["state"] == "released"


async def test_releasing_an_unknown_deployment_is_refused(ingress: Ingress) -> None:
    await ingress.send("release.requested.v1", {"deployment_id": str(uuid4())})
    (fault,) = (await ingress.refusal())["faults"]
    assert fault["field"] == "deployment_id"
    assert ingress.silent()


async def test_a_nodes_inventory_is_kept_and_nothing_said(ingress: Ingress, redis_url: str) -> None:
    gpu = Gpu(id="n1/cpu:0", gpu_type="cpu-1t", total_bytes=10, foreign_bytes=0)
    inventory = InventoryChanged(node="n1", engine="torch", gpus=(GpuState(gpu=gpu),))
    await ingress.tell(inventory)
    async with Redis.from_url(redis_url, decode_responses=True) as redis, asyncio.timeout(5):
        while not (heard := await Inventories(redis).all()):  # noqa: ASYNC110  # nor has a store
            await asyncio.sleep(0.002)
    assert heard[0].inventory == inventory
    assert ingress.silent()


@pytest.mark.parametrize("message", INGRESS.consumes, ids=lambda message: message.topic)
async def test_malformed_messages_are_refused_and_dead_lettered_with_the_reason(
    ingress: Ingress, broker: InProcessBroker, message: type[Message]
) -> None:
    key = message.topic + (".n1" if message.routed_by else "")
    bad: list[tuple[bytes, str]] = [(b"{not json", message.topic), (b"[]", message.topic), (b"{}", message.topic)]
    if message.topic.split(".")[1] in ("submitted", "requested"):
        bad.append((json.dumps(intent(colour="red")).encode(), message.topic))
    bad.append((b"{}", message.topic.replace("v1", "v9")))
    for body, kind in bad:
        await ingress.send(key, body, type_=kind)
        faults = (await ingress.refusal())["faults"]
        assert all(fault["problem"] and fault["remedy"] for fault in faults)
    assert len(broker.dead_letters(INGRESS.dead_queue)) == len(bad)
    assert all(dead.headers["reason"] for dead in broker.dead_letters(INGRESS.dead_queue))
    assert ingress.silent()


TEXT = "Water boils at a hundred degrees. " * 20


async def test_accuracy_is_asked_for_followed_and_remembered_with_the_model(ingress: Ingress, redis_url: str) -> None:
    asked = {"accuracy_id": str(ID), "model": "smol", "text": TEXT}
    await ingress.send("accuracy.submitted.v1", asked)
    (requested,) = await ingress.emitted("accuracy.requested.v1")
    assert (requested["text"], requested["max_tokens"]) == (TEXT, 4096)
    model = Model.model_validate(requested["model"])
    assert model.source == "HuggingFaceTB/SmolLM2-135M"
    await ingress.tell(AccuracyProgressed(accuracy_id=ID, variant="fp32", num_done=512, num_tokens=600))
    async with Redis.from_url(redis_url, decode_responses=True) as redis, asyncio.timeout(5):
        accuracies = Accuracies(redis)
        while (record := await accuracies.get(ID)) is None or not record.progress:  # noqa: ASYNC110  # nor has a store
            await asyncio.sleep(0.002)
        await ingress.send("accuracy.submitted.v1", asked)  # again: it is under way
        bf16 = VariantAccuracy(variant="bf16", perplexity=12.0, agreement=0.97, relative=0.98)
        await ingress.tell(AccuracyMeasured(accuracy_id=ID, model=model, variants=(bf16,), num_tokens=600))
        (registered,) = await ingress.emitted("model.registered.v1")
        remembered = Model.model_validate(registered["model"]).variant("bf16", Precision.BF16)
        assert remembered is not None
        assert (remembered.accuracy, remembered.provenance) == (0.98, Provenance.MEASURED)
        while (record := await accuracies.get(ID)) is None or not record.finished:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert record.results == (bf16,)
    assert ingress.silent()


async def test_accuracy_of_an_unknown_model_is_refused_with_the_known_ones(ingress: Ingress) -> None:
    await ingress.send("accuracy.submitted.v1", {"accuracy_id": str(ID), "model": "smoll", "text": TEXT})
    (fault,) = (await ingress.refusal())["faults"]
    assert (fault["field"], "did you mean smol?" in fault["remedy"]) == ("model", True)
    assert ingress.silent()


async def failure(streams: Streams, deployment_id: UUID, *, deadline_s: float = 30.0) -> RequestFailed:
    request = RequestSubmitted(deployment_id=deployment_id, request_id=uuid4(), prompt="x")
    with pytest.raises(RequestFailed) as failed:
        async for _ in streams.generate(request, priority=Priority.NORMAL, deadline_s=deadline_s):
            pass
    return failed.value


@pytest.mark.parametrize(
    "end",
    [
        lambda: DeploymentReleased(deployment_id=ID),
        lambda: DeploymentFailed(deployment_id=ID, reason=FailureReason.NO_CAPACITY, detail="full"),
    ],
)
async def test_requests_that_wait_for_a_deployment_that_ends_are_answered(
    ingress: Ingress, bus: InProcessBus, end: Callable[[], Message]
) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    streams = await Streams.open(bus)
    waiting = asyncio.ensure_future(failure(streams, ID))
    await asyncio.sleep(0.02)
    await ingress.tell(end())
    assert (await waiting).error.code == "deployment_gone"
    assert (await failure(streams, ID)).error.code == "deployment_gone"
    await streams.close()


async def test_a_request_whose_deadline_passes_in_the_queue_is_answered(ingress: Ingress, bus: InProcessBus) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    answerer = await bus.consume_dead_requests(answering(bus))
    streams = await Streams.open(bus)
    failed = await failure(streams, ID, deadline_s=0.05)
    assert failed.error.code == "deadline_exceeded"
    assert failed.error.field == "deadline"
    await streams.close()
    await answerer.cancel()


async def test_a_request_that_kills_every_engine_is_answered(ingress: Ingress, bus: InProcessBus) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    answerer = await bus.consume_dead_requests(answering(bus))
    streams = await Streams.open(bus)
    putting_back: set[asyncio.Task[None]] = set()

    def put_back(delivery: Any) -> None:
        putting_back.add(asyncio.ensure_future(delivery.requeue()))

    consumer = await bus.consume_requests(ID, put_back, slots=1)
    assert (await failure(streams, ID)).error.code == "engine_failed"
    await consumer.cancel()
    await streams.close()
    await answerer.cancel()


async def test_a_fleets_queues_are_open_before_its_routes_are_told_and_close_with_it(
    ingress: Ingress, bus: InProcessBus
) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await ingress.tell(PlanComputed(deployment_id=ID, admission=ADMISSION, plan=FLEET_PLAN))
    (changed,) = await ingress.emitted("deployment.changed.v1")
    assert changed["deployment"]["routes"] == []  # nothing serves yet
    request = RequestSubmitted(deployment_id=ID, request_id=uuid4(), prompt="x")
    await bus.submit(request, reply_to=REPLIES, gpu_type=SMALL)

    for replica, gpu_type in enumerate((LARGE, SMALL)):
        placed = routed(gpu_type, replica, f"t{replica}")
        await ingress.tell(PlacementReserved(deployment_id=ID, node="n1", placement=placed))
        await ingress.tell(ReplicaReady(deployment_id=ID, replica=replica, token=f"t{replica}", node="n1", load_s=1))
        _, changed = await ingress.emitted("deployment.changed.v1", "deployment.changed.v1")
    routes = changed["deployment"]["routes"]
    assert [[served["gpu_type"] for served in one["served_by"]] for one in routes] == [[SMALL, LARGE], [LARGE, SMALL]]

    await ingress.tell(ReplicaFailed(deployment_id=ID, replica=1, token="t1", node="n1", detail="died"))
    (changed,) = await ingress.emitted("deployment.changed.v1")
    routes = changed["deployment"]["routes"]
    assert [[served["gpu_type"] for served in one["served_by"]] for one in routes] == [[LARGE], [LARGE]]

    await ingress.tell(DeploymentReleased(deployment_id=ID))
    (changed,) = await ingress.emitted("deployment.changed.v1")
    with pytest.raises(Unroutable):
        await bus.submit(request, reply_to=REPLIES, gpu_type=SMALL)


async def test_a_plan_that_comes_after_the_end_opens_no_queues(ingress: Ingress, bus: InProcessBus) -> None:
    await ingress.send("intent.submitted.v1", intent())
    await ingress.emitted("intent.accepted.v1", "deployment.changed.v1")
    await ingress.tell(DeploymentReleased(deployment_id=ID))
    await ingress.tell(PlanComputed(deployment_id=ID, admission=ADMISSION, plan=FLEET_PLAN))
    await ingress.emitted(*["deployment.changed.v1"] * 2)
    with pytest.raises(Unroutable):
        request = RequestSubmitted(deployment_id=ID, request_id=uuid4(), prompt="x")
        await bus.submit(request, reply_to=REPLIES, gpu_type=SMALL)
