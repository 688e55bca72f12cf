"""Both brokers as the conformance suite sees them: buses to use, and a look inside."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol
from uuid import uuid4

import aiormq
from aiormq.abc import DeliveredMessage

from maveriq.bus import Handler, QueueFull, Unroutable
from maveriq.bus.connected import ConnectedBus
from maveriq.bus.envelope import Envelope
from maveriq.bus.inprocess import InProcessBroker, InProcessBus, InProcessConnection
from maveriq.bus.queues import QueueSpec
from maveriq.bus.rabbitmq import RabbitMqBus, RabbitMqConnection
from maveriq.bus.rabbitmq_frames import envelope
from maveriq.contracts import ReleaseAccepted, ReleaseRequested
from maveriq.topology import EXCHANGE, Service

PATIENCE_S = 15.0  # for what happens by itself; never waited out where it does


def at_once(attempt: int) -> float:
    return 0.0


class Side(Protocol):
    """One kind of broker."""

    async def bus(self, retry_delay_s: Callable[[int], float] = at_once) -> ConnectedBus:
        """One more process's bus."""
        ...

    async def waiting(self, queue: str) -> list[Envelope]:
        """What waits in a queue, and stays there."""
        ...

    async def post(self, envelope: Envelope, key: str, exchange: str = EXCHANGE) -> None:
        """Publish as any AMQP client could."""
        ...

    async def tap(self, key: str) -> str:
        """A new queue that keeps what is published under a key."""
        ...

    async def declare(self, queue: QueueSpec) -> None: ...

    async def delete(self, queue: str) -> None: ...

    async def close(self) -> None: ...


class InProcessSide:
    def __init__(self) -> None:
        self._broker = InProcessBroker()
        self._buses: list[ConnectedBus] = []

    async def bus(self, retry_delay_s: Callable[[int], float] = at_once) -> ConnectedBus:
        self._buses.append(InProcessBus(self._broker, retry_delay_s=retry_delay_s))
        return self._buses[-1]

    async def waiting(self, queue: str) -> list[Envelope]:
        return list(self._broker.dead_letters(queue)) if queue in self._broker.queues else []

    async def post(self, envelope: Envelope, key: str, exchange: str = EXCHANGE) -> None:
        await InProcessConnection(self._broker).post(envelope, key, exchange=exchange, timeout_s=1)

    async def tap(self, key: str) -> str:
        name = f"tap.{uuid4()}"
        await InProcessConnection(self._broker).declare([QueueSpec(name=name, bindings=(key,))])
        return name

    async def declare(self, queue: QueueSpec) -> None:
        self._broker.declare(queue)

    async def delete(self, queue: str) -> None:
        self._broker.delete(queue)

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class RabbitMqSide:
    def __init__(self, url: str) -> None:
        self._url = url
        self._buses: list[ConnectedBus] = []
        self._own: RabbitMqConnection | None = None
        self._taps: list[str] = []

    async def bus(self, retry_delay_s: Callable[[int], float] = at_once) -> ConnectedBus:
        self._buses.append(await RabbitMqBus.connect(self._url, retry_delay_s=retry_delay_s))
        return self._buses[-1]

    async def waiting(self, queue: str) -> list[Envelope]:
        connection = await aiormq.connect(self._url)
        found: list[Envelope] = []
        with suppress(aiormq.ChannelNotFoundEntity):
            channel = await connection.channel()
            while (message := await channel.basic_get(queue)).delivery_tag:
                assert isinstance(message, DeliveredMessage)
                found.append(envelope(message))
        await connection.close()  # gives back what was taken
        return found

    async def post(self, envelope: Envelope, key: str, exchange: str = EXCHANGE) -> None:
        await (await self._connection()).post(envelope, key, exchange=exchange, timeout_s=10)

    async def tap(self, key: str) -> str:
        name = f"tap.{uuid4()}"
        await (await self._connection()).declare([QueueSpec(name=name, bindings=(key,))])
        self._taps.append(name)
        return name

    async def declare(self, queue: QueueSpec) -> None:
        await (await self._connection()).declare([queue])

    async def delete(self, queue: str) -> None:
        await (await self._connection()).dismantle(queue, _ignore)

    async def close(self) -> None:
        for tap in self._taps:
            await self.delete(tap)
        if self._own is not None:
            await self._own.close()
        for bus in self._buses:
            await bus.close()

    async def _connection(self) -> RabbitMqConnection:
        if self._own is None:
            self._own = await RabbitMqConnection.connect(self._url)
        return self._own


class Echo:
    """A service that answers each release request with its acceptance, or does what a test tells it."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.service = Service(f"echo-{uuid4().hex[:8]}", consumes=(ReleaseRequested,), emits=(ReleaseAccepted,))
        self.taken: list[ReleaseRequested] = []
        self.behave: Callable[[ReleaseRequested], Awaitable[object]] | None = None
        self._running: list[asyncio.Task[None]] = []

    @property
    def queue(self) -> str:
        return self.service.queue(ReleaseRequested)

    async def on_release_requested(self, message: ReleaseRequested) -> ReleaseAccepted:
        self.taken.append(message)
        if self.behave is not None:
            await self.behave(message)
        return ReleaseAccepted(deployment_id=message.deployment_id)

    async def start(self, bus: ConnectedBus) -> asyncio.Task[None]:
        """Run it on a bus; returns once it takes messages."""
        running = asyncio.create_task(
            bus.run(self.service, [Handler(ReleaseRequested, self.on_release_requested, prefetch=2)])
        )
        self._running.append(running)
        behave, self.behave = self.behave, None
        probe = Envelope(ReleaseRequested(deployment_id=uuid4()).model_dump_json().encode())
        async with asyncio.timeout(PATIENCE_S):
            while not running.done():
                with suppress(Unroutable, QueueFull):  # not declared yet
                    await self._side.post(probe, self.queue, exchange="")
                    break
                await asyncio.sleep(0.02)
        await until(lambda: self.taken or running.done())
        self.behave = behave
        self.taken.clear()
        return running

    async def stop(self) -> None:
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._side.delete(self.queue)
        await self._side.delete(self.service.dead_queue)


async def until(holds: Callable[[], object]) -> None:
    """Wait for something that happens by itself."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.01)


async def _ignore(envelope: Envelope, attempt: int) -> None: ...
