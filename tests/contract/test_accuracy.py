"""A measurement of accuracy as its neighbours see it: the profiler's messages, and HTTP from start to result."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import (
    AccuracyMeasured,
    AccuracyProgressed,
    AccuracyRequested,
    LayerSensitivity,
    Model,
    ModelFacts,
    Precision,
    Variant,
    VariantAccuracy,
)
from maveriq_profiler.accuracy_handlers import AccuracyHandlers
from maveriq_profiler.accuracy_measuring import AccuracyMeasuring
from maveriq_profiler.borrowing import NoMemory
from maveriq_profiler.children import Children
from maveriq_profiler.measuring import ModelUnreadable
from maveriq_profiler.orders import Reading
from tests.door import Door, quiet_ingress
from tests.unit.profiler.rigs import FACTS, rig

TEXT = "Water boils at a hundred degrees. " * 20
BIG = FACTS.model_copy(update={"num_layers": 4_000_000})  # some 500 GiB


@dataclass(frozen=True)
class Shelf:
    """Configs by source."""

    facts: dict[str, ModelFacts]

    async def read(self, source: str) -> Reading:
        if source not in self.facts:
            raise ModelUnreadable(f"{source}: there is no such folder; give a folder with config.json")
        return Reading(facts=self.facts[source], config_json="{}")


@dataclass
class Room:
    """A GPU with so many bytes free."""

    free_bytes: int
    asked: int = 0

    @asynccontextmanager
    async def borrowed(self, num_bytes: int) -> AsyncIterator[str]:
        self.asked += 1
        if num_bytes > self.free_bytes:
            raise NoMemory("no GPU has so much free")
        yield "cpu"


def asked(*variants: Variant, source: str = "/models/tiny") -> AccuracyRequested:
    model = Model(name="tiny", source=source, variants=variants or (Variant(precision=Precision.FP32),))
    return AccuracyRequested(accuracy_id=uuid4(), model=model, text=TEXT, max_tokens=64)


async def measured(measuring: AccuracyMeasuring, request: AccuracyRequested) -> AccuracyMeasured:
    async def publish(message: object) -> None:
        pass

    reply = await AccuracyHandlers(measuring, publish).on_accuracy_requested(request)
    return AccuracyMeasured.model_validate_json(reply.model_dump_json())


async def test_a_model_that_cannot_be_read_is_answered_with_the_reason() -> None:
    reply = await measured(AccuracyMeasuring(rig(), Shelf({}), Children(1), None, lambda: 10**9), asked())
    assert reply.variants == ()
    assert reply.problem.startswith("/models/tiny: there is no such folder")


@pytest.mark.parametrize("room", [None, Room(4 * 2**30)], ids=["host", "gpu"])
async def test_a_model_that_does_not_fit_is_answered_with_what_it_needs(room: Room | None) -> None:
    measuring = AccuracyMeasuring(rig(), Shelf({"/models/tiny": BIG}), Children(1), room, lambda: 4 * 2**30)
    reply = await measured(measuring, asked())
    assert "bf16 takes" in reply.problem and "GiB" in reply.problem and "--from-lm-eval" in reply.problem
    if room is not None:
        assert room.asked == 2, "fp32, then bf16"


@pytest.mark.asyncio(loop_scope="session")
async def test_whatever_ends_the_measuring_process_every_variant_has_a_reason(children: Children) -> None:
    """Here: there are no weights to load."""
    shelf = Shelf({"/models/tiny": FACTS, "/models/p": FACTS.model_copy(update={"intermediate_size": 96})})
    variants = (
        Variant(precision=Precision.FP32),
        Variant(precision=Precision.FP8),
        Variant(name="pruned", precision=Precision.BF16, source="/models/p"),
        Variant(name="gone", precision=Precision.BF16, source="/models/gone"),
    )
    reply = await measured(AccuracyMeasuring(rig(), shelf, children, None, lambda: 10**12), asked(*variants))
    problems = {each.variant: each.problem for each in reply.variants}
    assert "register it as a model of its own" in problems["pruned"]
    assert "there is no such folder" in problems["gone"]
    assert "register a checkpoint of it" in problems["fp8"]
    assert problems["fp32"] and reply.problem
    assert reply.reference is Precision.FP32


@pytest.mark.asyncio(loop_scope="session")
async def test_what_takes_too_long_is_given_up_with_what_to_do_about_it(children: Children) -> None:
    measuring = AccuracyMeasuring(rig(), Shelf({"/models/tiny": FACTS}), children, None, lambda: 10**12, limit_s=0.01)
    assert "fewer --max-tokens" in (await measured(measuring, asked())).problem


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


async def test_over_http_it_is_asked_for_polled_and_found_with_the_model(door: Door, broker: InProcessBroker) -> None:
    broker.declare(QueueSpec(name="spy", bindings=(AccuracyRequested.topic,)))
    await door.http.post("/v1/models", json={"name": "org/smol", "source": "org/smol"})
    answer = await door.http.post("/v1/models/org/smol/accuracy", json={"text": TEXT, "max_tokens": 600})
    assert answer.status_code == 202, answer.text
    where, accuracy_id = answer.headers["location"], UUID(answer.json()["accuracy_id"])
    assert answer.json()["variants"] == ["fp32", "bf16", "fp16"]
    (waiting,) = broker.queues["spy"].waiting
    request = AccuracyRequested.model_validate_json(waiting.envelope.body)
    await door.bus.publish(AccuracyProgressed(accuracy_id=accuracy_id, variant="fp32", num_done=6, num_tokens=600))
    await door.until(lambda: seen(door, where, lambda record: record["progress"]))
    bf16 = VariantAccuracy(variant="bf16", perplexity=12.0, agreement=0.97, relative=0.98)
    await door.bus.publish(
        AccuracyMeasured(accuracy_id=accuracy_id, model=request.model, variants=(bf16,), num_tokens=600)
    )
    await door.until(lambda: seen(door, where, lambda record: record["finished"]))
    variants = (await door.http.get("/v1/models/org/smol")).json()["registered"]["variants"]
    assert [(each["accuracy"], each["provenance"]) for each in variants] == [
        (1.0, None), (0.98, "measured"), (1.0, None)
    ]  # fmt: skip


async def test_what_layers_lose_is_asked_for_over_http_and_found_with_the_model(
    door: Door, broker: InProcessBroker
) -> None:
    broker.declare(QueueSpec(name="spy", bindings=(AccuracyRequested.topic,)))
    await door.http.post("/v1/models", json={"name": "smol", "source": "org/smol"})
    answer = await door.http.post("/v1/models/smol/accuracy", json={"text": TEXT, "layers": ["int8", "int4"]})
    assert answer.json()["variants"] == ["layers in int8", "layers in int4"]
    (waiting,) = broker.queues["spy"].waiting
    request = AccuracyRequested.model_validate_json(waiting.envelope.body)
    assert request.layers == (Precision.INT8, Precision.INT4)
    lost = LayerSensitivity(precisions=(Precision.FP32, *request.layers), layers=((0.0, 0.001, 0.1),) * 2)
    await door.bus.publish(
        AccuracyMeasured(
            accuracy_id=request.accuracy_id, model=request.model, variants=(), sensitivity=lost, num_tokens=600
        )
    )
    where = answer.headers["location"]
    await door.until(lambda: seen(door, where, lambda record: record["finished"]))
    kept = (await door.http.get("/v1/models/smol")).json()["registered"]
    assert LayerSensitivity.model_validate(kept["sensitivity"]) == lost
    assert [each["accuracy"] for each in kept["variants"]] == [1.0, 1.0, 1.0]


async def seen(door: Door, where: str, holds: object) -> bool:
    record = (await door.http.get(where)).json()
    return bool(callable(holds) and holds(record))


async def test_what_is_asked_wrongly_over_http_names_the_field(door: Door) -> None:
    await door.http.post("/v1/models", json={"name": "smol", "source": "org/smol"})
    wrong = [
        ("/v1/models/smol/accuracy", {"text": "short"}, 400, "text"),
        ("/v1/models/smol/accuracy", {"text": TEXT, "max_tokens": 1}, 400, "max_tokens"),
        ("/v1/models/smol/accuracy", {"text": TEXT, "tokens": 100}, 400, "tokens"),
        ("/v1/models/smol/accuracy", {"text": TEXT, "layers": ["fp8"]}, 400, "layers"),
        ("/v1/models/smoll/accuracy", {"text": TEXT}, 404, "model"),
    ]
    for path, body, status, field in wrong:
        answer = await door.http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, field), answer.text
    lost = await door.http.get(f"/v1/models/smol/accuracy/{uuid4()}")
    assert (lost.status_code, lost.json()["error"]["code"]) == (404, "accuracy_not_found")
