"""Requests of a deployment on two GPU types, from a producer to workers with stepped engines, on both brokers.

Small requests land on the small type, large ones on the large, what is over goes to the other, and nothing is lost.
"""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from maveriq.bus import DeadRequest
from maveriq.bus.connected import ConnectedBus
from maveriq.contracts import Chunk, RequestSubmitted, Sampling
from maveriq.routing import serving
from maveriq.streams import Streams
from maveriq_worker import lanes as lanes_module
from maveriq_worker.serving import Serving
from tests.broker.sides import Side, until
from tests.fleets import LARGE, ROUTES, SMALL, lanes
from tests.unit.worker.engine_double import SteppedEngine

TYPES = (SMALL, LARGE)
SHORT, LONG = tuple(range(10)), tuple(range(500))
SLOTS = 2


class Replica:
    def __init__(self, bus: ConnectedBus, deployment_id: UUID, gpu_type: str) -> None:
        self.bus = bus
        self.engine = SteppedEngine()
        self.serving = Serving(bus, self.engine, deployment_id, SLOTS, lanes=lanes(gpu_type))

    @property
    def began(self) -> list[UUID]:
        return [generation.request_id for generation in self.engine.generations]

    @property
    def now(self) -> set[UUID]:
        """At which it works."""
        return set(self.engine.asked)

    async def die(self) -> None:
        await self.bus.close()


class Deployed:
    """A deployment with a replica on each type, and a producer of it."""

    def __init__(self, side: Side, bus: ConnectedBus) -> None:
        self.side, self.bus, self.id = side, bus, uuid4()
        self.routes = ROUTES
        self.replicas: list[Replica] = []
        self.answers: dict[UUID, asyncio.Task[list[Chunk]]] = {}

    async def replica(self, gpu_type: str) -> Replica:
        made = Replica(await self.side.bus(), self.id, gpu_type)
        await made.serving.open()
        self.replicas.append(made)
        return made

    def ask(self, streams: Streams, prompt: tuple[int, ...]) -> UUID:
        request = RequestSubmitted(
            deployment_id=self.id, request_id=uuid4(), prompt=prompt, sampling=Sampling(max_tokens=3)
        )

        async def answer() -> list[Chunk]:
            return [chunk async for chunk in streams.generate(request, routes=self.routes)]

        self.answers[request.request_id] = asyncio.create_task(answer())
        return request.request_id

    async def all_answered(self) -> None:
        async with asyncio.timeout(30):
            while not all(answer.done() for answer in self.answers.values()):
                for replica in self.replicas:
                    replica.engine.step()
                await asyncio.sleep(0.005)
        for answer in self.answers.values():
            assert answer.result()[-1].finish_reason == "length"


@pytest.fixture
async def deployed(side: Side, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Deployed]:
    monkeypatch.setattr(lanes_module, "LOOK_S", 0.3)
    made = Deployed(side, await side.bus())
    await made.bus.open_requests(made.id, TYPES)
    yield made
    for answer in made.answers.values():
        answer.cancel()
    await asyncio.gather(*made.answers.values(), return_exceptions=True)
    for replica in made.replicas:
        if replica.bus.connected:
            await replica.serving.give_back()
    await made.bus.close_requests(made.id, _ignored, TYPES)


async def _ignored(dead: DeadRequest) -> None: ...


@pytest.fixture
async def streams(side: Side) -> AsyncIterator[Streams]:
    streams = await Streams.open(await side.bus())
    yield streams
    await streams.close()


async def test_each_request_is_answered_where_its_size_was_planned_for(deployed: Deployed, streams: Streams) -> None:
    small, large = await deployed.replica(SMALL), await deployed.replica(LARGE)
    short, long = deployed.ask(streams, SHORT), deployed.ask(streams, LONG)
    await until(lambda: len(small.now) + len(large.now) == 2)
    assert (small.now, large.now) == ({short}, {long})
    await deployed.all_answered()


async def test_what_a_full_type_has_no_room_for_goes_to_the_next(deployed: Deployed, streams: Streams) -> None:
    small, large = await deployed.replica(SMALL), await deployed.replica(LARGE)
    for _ in range(SLOTS):
        deployed.ask(streams, SHORT)
    await until(lambda: len(small.now) == SLOTS)
    assert not large.now
    over = {deployed.ask(streams, SHORT) for _ in range(SLOTS)}
    await until(lambda: large.now == over)
    await deployed.all_answered()


async def test_a_full_replica_begins_no_guests_request(deployed: Deployed, streams: Streams) -> None:
    small, large = await deployed.replica(SMALL), await deployed.replica(LARGE)
    for prompt in (SHORT, LONG):
        for _ in range(SLOTS):
            deployed.ask(streams, prompt)
    await until(lambda: len(small.now) + len(large.now) == 2 * SLOTS)
    for _ in range(6):
        deployed.ask(streams, SHORT)
    await asyncio.sleep(0.1)
    for _ in range(20):  # the small type goes on alone, and all that waits is its own
        small.engine.step()
        await asyncio.sleep(0.005)
    assert len(small.began) > SLOTS
    assert len(large.began) == SLOTS
    await deployed.all_answered()


async def test_nothing_is_lost_when_all_replicas_of_a_type_die(deployed: Deployed, streams: Streams) -> None:
    small, large = await deployed.replica(SMALL), await deployed.replica(LARGE)
    for _ in range(SLOTS):
        deployed.ask(streams, LONG)
    await until(lambda: len(large.now) == SLOTS)
    for _ in range(SLOTS + 3):
        deployed.ask(streams, SHORT)
    await until(lambda: len(small.now) == SLOTS)
    deployed.replicas.remove(small)
    await small.die()
    deployed.routes = serving(ROUTES, frozenset({LARGE}))
    late = deployed.ask(streams, SHORT)
    await deployed.all_answered()
    assert late in large.began


async def test_whoever_knows_no_routes_is_answered_by_any_replica(deployed: Deployed, streams: Streams) -> None:
    large = await deployed.replica(LARGE)
    deployed.routes = ()
    asked = deployed.ask(streams, SHORT)
    await until(lambda: asked in large.now)
    await deployed.all_answered()


async def test_a_lane_that_is_gone_is_no_reason_to_fail(deployed: Deployed, streams: Streams) -> None:
    await deployed.bus.close_requests(deployed.id, _ignored, TYPES)
    await deployed.bus.open_requests(deployed.id)
    large = await deployed.replica(LARGE)
    asked = deployed.ask(streams, SHORT)
    await until(lambda: asked in large.now)
    await deployed.all_answered()


async def test_a_replica_that_is_there_before_its_lane_takes_part_once_it_is_open(
    side: Side, streams: Streams, deployed: Deployed
) -> None:
    early = Deployed(side, deployed.bus)
    await early.bus.open_requests(early.id)
    small = await early.replica(SMALL)
    await early.bus.open_requests(early.id, TYPES)
    asked = early.ask(streams, SHORT)
    await until(lambda: asked in small.now)
    await early.all_answered()
    await small.serving.give_back()
    await early.bus.close_requests(early.id, _ignored, TYPES)
