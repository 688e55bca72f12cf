"""Every queue that we declare, and with which bounds. Pure: the topology in, queues out.

The one place: declaring a queue again with other bounds is fatal on RabbitMQ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from maveriq.contracts import Message, Priority
from maveriq.topology import (
    DEAD_REQUESTS,
    INGRESS,
    MAX_ATTEMPTS,
    MAX_DEADLINE_S,
    QUEUE_LENGTH,
    REQUEST_QUEUE_LENGTH,
    RESTING_LENGTH,
    SERVICES,
    WORKER,
    Service,
    request_queue,
)

# Deliveries are counted by the broker also when a consumer dies. Failed handlers are given up after MAX_ATTEMPTS by
# ourselves, with the reason; this ends what kills its consumer each time. It is RabbitMQ 4's default.
BACKSTOP_ATTEMPTS = 20


class DeclaredOtherwise(Exception):
    """The broker has a queue of this name with other bounds, of another version: delete it once it is empty."""


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A durable queue. Publishers to a full one are refused."""

    name: str
    bindings: tuple[str, ...] = ()
    """Keys of the topic exchange."""
    max_length: int | None = None
    ttl_s: float | None = None
    max_attempts: int | None = None
    """How often a message is handed out before it goes to `dead_queue`."""
    dead_queue: str | None = None
    """Where what expired, or was handed out too often, goes."""
    ends: bool = False
    """It is deleted one day: whoever consumes it then must not declare it again."""


def service_queues(service: Service, node: str | None = None) -> tuple[QueueSpec, ...]:
    """What one service consumes, and its dead queue, first. A node's own queues only where `node` is given."""
    consumed = tuple(
        queue
        for message in service.consumes
        if node or not (service.per_node and message.routed_by == "node")
        for queue in _queues_of(service, message, node)
    )
    return (QueueSpec(name=service.dead_queue), *consumed)


def _queues_of(service: Service, message: type[Message], node: str | None) -> Iterator[QueueSpec]:
    """One; what rests first lies in another, from which it expires into the one that is consumed."""
    name, bindings = service.queue(message, node), (service.binding(message, node),)
    yield QueueSpec(
        name=name,
        bindings=() if message.rest_s else bindings,
        max_length=QUEUE_LENGTH,
        max_attempts=BACKSTOP_ATTEMPTS,
        dead_queue=service.dead_queue,
    )
    if message.rest_s:
        yield QueueSpec(
            name=f"{name}.resting", bindings=bindings, max_length=RESTING_LENGTH, ttl_s=message.rest_s, dead_queue=name
        )  # fmt: skip


def topology_queues() -> tuple[QueueSpec, ...]:
    """What all services consume, whether they have ever run or not: services start in any order, and what one emits
    waits for the others. A node's own queues are declared by the service on it.
    """
    return tuple(queue for service in SERVICES for queue in service_queues(service)) + dead_request_queues()


def dead_request_queues() -> tuple[QueueSpec, ...]:
    return (
        QueueSpec(name=WORKER.dead_queue),
        QueueSpec(name=INGRESS.dead_queue),
        QueueSpec(name=DEAD_REQUESTS, max_attempts=BACKSTOP_ATTEMPTS, dead_queue=INGRESS.dead_queue),
    )


def request_queues(deployment_id: UUID, gpu_types: Sequence[str] = ()) -> tuple[QueueSpec, ...]:
    """Those for any replica, and those of each GPU type."""
    return tuple(
        QueueSpec(
            name=request_queue(deployment_id, priority, gpu_type),
            max_length=REQUEST_QUEUE_LENGTH,
            ttl_s=MAX_DEADLINE_S,
            max_attempts=MAX_ATTEMPTS,
            dead_queue=DEAD_REQUESTS,
            ends=True,
        )
        for gpu_type in (None, *gpu_types)
        for priority in Priority
    )
