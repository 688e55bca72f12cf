"""What the broker promises, whichever it is. `rabbitmq.py` and `inprocess.py` keep it; one suite holds both to it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from maveriq.bus.handler import Handler
from maveriq.contracts import Fault, Message, Priority, RequestSubmitted
from maveriq.topology import MAX_DEADLINE_S, Service
from maveriq.tracing import Spans

PUBLISH_TIMEOUT_S = 10.0  # RabbitMQ blocks publishers without a word while a memory alarm is on


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message whose sender has a cheaper way to its JSON than through its class: a worker's tokens."""

    topic: str
    body: bytes


class Rejected(Exception):
    """A message can never be handled: its sender is told, and it is dead-lettered now.

    Anything else that a handler raises is retried.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


class Unroutable(Exception):
    """No queue takes this message: nobody consumes its topic, or the deployment is gone."""


class QueueFull(Exception):
    """The queue is at its bound. Nothing was kept: try later, or elsewhere."""


class Unavailable(Exception):
    """The broker did not confirm in time. The message may or may not have been kept: send it again with the same id."""


class MailboxGone(Exception):
    """The owner of a mailbox has left: nobody will read what is sent to it."""


class Mailbox(Protocol):
    """One exclusive queue of one client; it returns, empty, after a lost connection."""

    @property
    def address(self) -> str:
        """For the reply_to of what this client sends."""
        ...

    async def bind(self, routing_key: str) -> None:
        """Also receive what is published under this key, e.g. deployment.changed.v1.<id>."""
        ...

    async def unbind(self, routing_key: str) -> None: ...

    async def close(self) -> None: ...


class RequestDelivery(Protocol):
    """One request in hand. It is the broker's until acked: a dead consumer's requests go to the next."""

    @property
    def request(self) -> RequestSubmitted: ...

    @property
    def attempt(self) -> int:
        """1, and one more for each time that it was handed out before."""
        ...

    @property
    def priority(self) -> Priority: ...

    @property
    def reply_to(self) -> str | None: ...

    @property
    def deadline(self) -> float:
        """Seconds since the epoch; later than this it is answered with an error."""
        ...

    async def ack(self) -> None:
        """It was answered in full."""
        ...

    async def requeue(self) -> None:
        """It was not: hand it to the next consumer, at the front."""
        ...


class RequestConsumer(Protocol):
    """A running consumption of one queue, or of a deployment's request queues of one kind."""

    async def pause(self) -> None:
        """Take no more for now. What is in hand stays in hand. Again is harmless."""
        ...

    async def resume(self) -> None:
        """Take up to as many as at first, whatever is in hand from before. Harmless where none was taken since."""
        ...

    async def cancel(self) -> None:
        """Take no more. What is in hand stays in hand."""
        ...


class DeadRequest(Protocol):
    """A request that no worker will answer, with the reason."""

    @property
    def request(self) -> RequestSubmitted: ...

    @property
    def attempt(self) -> int: ...

    @property
    def reply_to(self) -> str | None: ...

    @property
    def reason(self) -> str:
        """`expired`, `delivery_limit` (it was handed out too often) or `closed` (its deployment ended)."""
        ...


class Bus(Protocol):
    """A connection to the broker, which comes back by itself when it is lost.

    Each message carries the trace that it was published in (`maveriq.tracing.current`), and is handled in that.
    """

    @property
    def spans(self) -> Spans:
        """Where the service on this connection records what it does."""
        ...

    async def publish(
        self,
        message: Message,
        *,
        id: UUID | None = None,
        cause: UUID | None = None,
        reply_to: str | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Publish durably under `message.routing_key` and wait for the confirm.

        Messages of `topology.PRODUCER_HEARS` may have no listener; any other that no queue takes is an error.

        Args:
            id: unique; None draws one. The same message again takes the same id.

        Raises:
            Unroutable, QueueFull, Unavailable.
        """
        ...

    async def run(
        self,
        service: Service,
        handlers: Sequence[Handler[Any]],
        *,
        node: str | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        """Declare the topology and handle the service's messages until cancelled.

        The durable queues of every service in `topology.SERVICES` are declared, not only its own: a message
        for a service that has never run yet waits for it. Queues of a node are declared by that node's worker.

        Returned messages are published with confirm, then the cause is acked. A failing handler is
        retried after min(30, 2**attempt) s, MAX_ATTEMPTS times, then dead-lettered with the reason.
        Cancelling stops consuming first and gives handlers in flight a moment to end.

        Args:
            node: binds messages routed by node to this node's own queues; None receives all nodes'.
            ready: called once all queues exist: what is published from then on reaches the service.

        Raises:
            TypeError: the handlers are not exactly what the service consumes.
        """
        ...

    async def mailbox(self, receive: Callable[[Message], None], *, name: str = "client") -> Mailbox:
        """Open a mailbox. `receive` gets each message in order of arrival, and must not block.

        Args:
            name: start of the address, for people who look at the broker.
        """
        ...

    async def send(self, address: str, message: Message | Encoded, *, confirm: bool) -> None:
        """Send to a mailbox (or any queue by its name).

        Without confirm it promises nothing, and returns when the broker has passed the message on: who sends often
        gathers meanwhile what comes next. Order is kept between calls for one address, confirmed or not.

        Raises:
            MailboxGone: only with confirm.
            Unavailable: only with confirm.
        """
        ...

    async def open_requests(self, deployment_id: UUID, gpu_types: Sequence[str] = ()) -> None:
        """Declare the deployment's request queues, those of GPU types too. Again is harmless."""
        ...

    async def close_requests(
        self, deployment_id: UUID, answer: Callable[[DeadRequest], Awaitable[None]], gpu_types: Sequence[str] = ()
    ) -> None:
        """Delete the deployment's request queues; whatever waits there is handed to `answer`. Again is harmless."""
        ...

    async def submit(
        self,
        request: RequestSubmitted,
        *,
        reply_to: str,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = MAX_DEADLINE_S,
        gpu_type: str | None = None,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> None:
        """Queue a request durably, with its request_id as message id, and wait for the confirm.

        Args:
            gpu_type: that its size was planned for; None: any replica may take it.
            deadline_s: from now; what is not answered by then is answered with an error.

        Raises:
            Unroutable (no such deployment, or none with this GPU type), QueueFull, Unavailable.
        """
        ...

    async def consume_requests(
        self,
        deployment_id: UUID,
        receive: Callable[[RequestDelivery], None],
        *,
        slots: int,
        gpu_type: str | None = None,
        rank: int = 0,
        paused: bool = False,
    ) -> RequestConsumer:
        """Take requests while fewer than `slots` of a priority are in hand unacked.

        `receive` must not block. Deliveries of every priority come as they arrive: the receiver puts
        them in order.
        A malformed request is refused to its sender and dead-lettered by the bus.

        Args:
            gpu_type: take those planned for it; None: those for any replica.
            rank: consumers of a lower one come first, as long as they have room.
            paused: take none until resumed.

        Raises:
            Unroutable: there are no such queues, or not yet.
        """
        ...

    async def consume_dead_requests(self, answer: Callable[[DeadRequest], Awaitable[None]]) -> RequestConsumer:
        """Take requests that expired, or that were handed out MAX_ATTEMPTS times; acked once `answer` returns."""
        ...

    @property
    def connected(self) -> bool:
        """For readiness: whether the broker answers now."""
        ...

    async def close(self) -> None: ...
