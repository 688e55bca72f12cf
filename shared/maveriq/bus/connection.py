"""What a broker must be able to do for `ConnectedBus`: RabbitMQ and the in-process twin do it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from maveriq.bus.envelope import Envelope
from maveriq.bus.interface import Mailbox, RequestConsumer
from maveriq.bus.queues import QueueSpec


class Delivery(Protocol):
    """One message in hand; it is the broker's until acked."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def queue(self) -> str: ...

    @property
    def attempt(self) -> int:
        """1, and one more for each time that it was handed out before."""
        ...

    async def ack(self) -> None:
        """Done with it. On a connection lost meanwhile nothing happens: it is handed out again."""
        ...

    async def requeue(self) -> None:
        """Hand it out again, first. On a connection lost meanwhile that happens by itself."""
        ...


Receive = Callable[[Delivery], Awaitable[None]]
"""Run as a task for each delivery; cancelled when the connection is lost, for the delivery is another's then."""


@dataclass(frozen=True, slots=True)
class Taking:
    """How one consumer takes from a queue."""

    prefetch: int
    """Most that it has in hand, unacked."""
    rank: int = 0
    """Consumers of a lower one come first, as long as they have room."""
    paused: bool = False
    """It takes none until resumed."""


class Connection(Protocol):
    """One connection to a broker; it comes back by itself when it is lost."""

    @property
    def system(self) -> str:
        """The kind of broker, as spans name it."""
        ...

    async def declare(self, queues: Sequence[QueueSpec]) -> None: ...

    async def post(self, envelope: Envelope, key: str, *, exchange: str, timeout_s: float) -> None:
        """Store durably, and wait for the confirm; over a reconnect too, until the time is up.

        Args:
            exchange: EXCHANGE, or "" where `key` is a queue.

        Raises:
            Unroutable, QueueFull, Unavailable.
        """
        ...

    async def send(self, envelope: Envelope, address: str) -> None:
        """Send to a mailbox and forget."""
        ...

    async def send_confirmed(self, envelope: Envelope, address: str, *, timeout_s: float) -> None:
        """Send to a mailbox after all that was sent there before, and wait until it is there.

        Raises:
            MailboxGone, Unavailable.
        """
        ...

    async def consume(self, queue: str, receive: Receive, taking: Taking) -> RequestConsumer: ...

    async def dismantle(self, queue: str, receive: Callable[[Envelope, int], Awaitable[None]]) -> None:
        """Hand out what waits in a queue (with the attempt it would have been), then delete it, if it is there."""
        ...

    async def mailbox(self, receive: Callable[[Envelope], None], *, name: str) -> Mailbox: ...

    @property
    def connected(self) -> bool: ...

    async def close(self) -> None: ...
