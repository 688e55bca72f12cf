"""What a client hears beside its requests' answers: facts under one routing key, and refusals of what it sent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar
from uuid import uuid4

from maveriq.bus.interface import Bus
from maveriq.contracts import Fault, Message

M = TypeVar("M", bound=Message)


class Refused(Exception):
    """A message that we sent can never be handled; `faults` say what to change."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


class Subscription(Generic[M]):
    """What is published under one routing key while it is open, and the refusals of what was sent through it."""

    def __init__(self, bus: Bus, address: str) -> None:
        """Args:
        address: of the mailbox that refusals come to.
        """
        self._bus = bus
        self._address = address
        self._arrived: asyncio.Queue[M | Refused] = asyncio.Queue()
        self.sent: set[str] = set()

    async def publish(self, message: Message) -> None:
        """Publish; if it is refused, this subscription raises Refused.

        Raises:
            Unroutable, QueueFull, Unavailable.
        """
        message_id = uuid4()
        self.sent.add(str(message_id))
        await self._bus.publish(message, id=message_id, reply_to=self._address)

    def put(self, arrived: M | Refused) -> None:
        self._arrived.put_nowait(arrived)

    def __aiter__(self) -> AsyncIterator[M]:
        return self

    async def __anext__(self) -> M:
        """The next message. Raises Refused."""
        arrived = await self._arrived.get()
        if isinstance(arrived, Refused):
            raise arrived
        return arrived
