"""What travels around a message's body. Pure: a message in, its envelope out; an envelope in, what it says out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from maveriq.contracts import ChunksProduced, Fault, Message, MessageRefused
from maveriq.topology import MAX_DEADLINE_S
from maveriq.trace_context import TRACEPARENT, TRACESTATE, Trace, begun, received


@dataclass(frozen=True, slots=True)
class Envelope:
    """A body with its AMQP properties and headers."""

    body: bytes
    topic: str | None = None
    """The `type` property; None where a plain producer set none."""
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expires_s: float | None = None
    """The `expiration` property: seconds that it may wait in a queue."""
    sent_at: float | None = None
    """The `timestamp` property, seconds since the epoch."""
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])


def encode(message: Message) -> bytes:
    """The body. Chunks leave out what is null: they are many, and most of their fields are empty."""
    return message.model_dump_json(exclude_none=type(message) is ChunksProduced).encode()


def seal(
    message: Message,
    id: UUID,
    *,
    cause: UUID | None = None,
    reply_to: str | None = None,
    trace: Trace | None = None,
) -> Envelope:
    """Args:
    trace: that the message goes on with. What rests begins one of its own: it goes round, and a trace should end.
    """
    correlation = message.correlation
    causality = {"cause": str(cause)} if cause else {}
    return Envelope(
        body=encode(message),
        topic=message.topic,
        message_id=str(id),
        correlation_id=str(correlation) if correlation else None,
        reply_to=reply_to,
        headers=causality if trace is None or message.rest_s else causality | trace.headers(),
    )


def trace_of(envelope: Envelope) -> Trace:
    """Its producer's, or one that begins with it, the same at each redelivery."""
    return received(envelope.headers) or begun(identity(envelope))


def traced(envelope: Envelope) -> Mapping[str, Any]:
    """Its headers, with its trace in them whether its producer named one or not."""
    others = {name: value for name, value in envelope.headers.items() if name not in (TRACEPARENT, TRACESTATE)}
    return others | trace_of(envelope).headers()


def identity(envelope: Envelope) -> UUID:
    """The message's id, the same at each redelivery, also where a plain producer gave another kind of id or none."""
    if envelope.message_id:
        try:
            return UUID(envelope.message_id)
        except ValueError:
            return uuid5(NAMESPACE_OID, envelope.message_id)
    return uuid5(NAMESPACE_OID, envelope.body.hex())


def refusal(envelope: Envelope, sent_to: str, faults: Sequence[Fault]) -> MessageRefused:
    """What the sender is told.

    Args:
        sent_to: the queue, where the sender named no topic.
    """
    try:
        deployment_id = UUID(envelope.correlation_id or "")
    except ValueError:
        deployment_id = None
    return MessageRefused(
        refused_id=envelope.message_id or "",
        refused_topic=envelope.topic or sent_to,
        deployment_id=deployment_id,
        faults=tuple(faults) or (Fault(field="", problem="it can never be handled", remedy="do not send it again"),),
    )


def deadline(envelope: Envelope, now: float) -> float:
    """When a request must be answered, seconds since the epoch.

    The header `deadline` (a number, or text that is one) where there is one; else `expiration` counted from
    `timestamp`, or from `now` where there is none. Never later than MAX_DEADLINE_S from now.
    """
    latest = now + MAX_DEADLINE_S
    try:
        given = float(envelope.headers["deadline"])
    except (KeyError, TypeError, ValueError):
        given = nan  # a plain producer's
    if not isnan(given):
        return min(given, latest)
    allowed_s = MAX_DEADLINE_S if envelope.expires_s is None else envelope.expires_s
    sent_at = now if envelope.sent_at is None else min(envelope.sent_at, now)
    return min(sent_at + allowed_s, latest)
