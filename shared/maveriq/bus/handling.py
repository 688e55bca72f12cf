"""What happens to one delivery, whichever broker it came from: decode, handle, name the replies."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import NAMESPACE_OID, UUID, uuid5

import structlog
from pydantic import ValidationError

from maveriq.bus.envelope import Envelope, identity, trace_of
from maveriq.bus.handler import Handler, Replies
from maveriq.bus.interface import Rejected
from maveriq.contracts import Fault, Message, faults
from maveriq.topology import MAX_RETRY_DELAY_S, Service
from maveriq.tracing import within

M = TypeVar("M", bound=Message)


@contextmanager
def about(envelope: Envelope, message: type[Message], service: Service) -> Generator[None]:
    """Log lines of the block have the delivery's ids, and what it publishes goes on with the delivery's trace.

    Args:
        service: that handles it: in one process a delivery is made in its publisher's context.
    """
    trace = trace_of(envelope)
    with (
        within(trace),
        structlog.contextvars.bound_contextvars(
            service=service.name,
            message_id=str(identity(envelope)),
            deployment_id=envelope.correlation_id,
            topic=envelope.topic or message.topic,
            trace_id=trace.trace_id,
        ),
    ):
        yield


def decode(message: type[M], topic: str | None, body: bytes) -> M:
    """A delivery's body as its message.

    Args:
        topic: the AMQP `type` property; None where the producer set none.

    Raises:
        Rejected: another topic or version than `message`, or a body that is not one.
    """
    if topic and topic != message.topic:
        raise Rejected(Fault(field="type", problem=f"{topic} is not understood here", remedy=f"send {message.topic}"))
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        raise Rejected(*faults(error, message)) from error


def check_handlers(service: Service, handlers: Sequence[Handler[Any]]) -> None:
    """Raises TypeError unless the handlers are exactly what the topology says the service consumes."""
    have = [handler.message for handler in handlers]
    if len(have) != len(set(have)) or set(have) != set(service.consumes):
        missing = {m.topic for m in service.consumes} - {m.topic for m in have}
        extra = {m.topic for m in have} - {m.topic for m in service.consumes}
        raise TypeError(
            f"{service.name}: handlers are not what topology.py says it consumes: "
            f"missing {sorted(missing)}, not consumed {sorted(extra)}, or one given twice"
        )


def replies(service: Service, returned: Replies) -> tuple[Message, ...]:
    """What a handler returned, as a tuple.

    Raises:
        TypeError: the topology does not say that the service emits it.
    """
    if returned is None:
        return ()
    messages = (returned,) if isinstance(returned, Message) else tuple(returned)
    for message in messages:
        if type(message) not in service.emits:
            raise TypeError(f"{service.name} does not emit {message.topic}: see topology.py")
    return messages


def reply_id(cause: UUID, message: Message, index: int) -> UUID:
    """Same cause, same reply, same id: a redelivered message repeats its replies' ids. Same fact, same id."""
    if message.fact is not None:
        return uuid5(NAMESPACE_OID, f"{message.topic}/{message.fact}")
    return uuid5(cause, f"{message.topic}/{index}")


def retry_delay_s(attempt: int) -> float:
    """How long to wait before attempt `attempt` + 1; attempts count from 1."""
    return min(MAX_RETRY_DELAY_S, 2.0**attempt)
