"""Envelopes and queues in AMQP's words. Pure: ours in, properties and arguments out, and back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from maveriq.bus.envelope import Envelope
from maveriq.bus.queues import QueueSpec

TRANSIENT, PERSISTENT = 1, 2


def properties(envelope: Envelope, delivery_mode: int) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        delivery_mode=delivery_mode,
        message_type=envelope.topic,
        message_id=envelope.message_id,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        expiration=None if envelope.expires_s is None else str(int(envelope.expires_s * 1000)),
        timestamp=None if envelope.sent_at is None else datetime.fromtimestamp(int(envelope.sent_at), UTC),
        headers=dict(envelope.headers) or None,
    )


def envelope(message: DeliveredMessage) -> Envelope:
    """What arrived. The broker's own headers are put in our words: `reason` and `dead_from`."""
    given = message.header.properties
    return Envelope(
        body=message.body,
        topic=given.message_type,
        message_id=given.message_id,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        expires_s=_seconds(given.expiration),
        sent_at=given.timestamp.timestamp() if isinstance(given.timestamp, datetime) else None,
        headers=_headers(given.headers) if given.headers else {},
    )


def attempt(message: DeliveredMessage) -> int:
    """Quorum queues count the deliveries before this one."""
    counted = (message.header.properties.headers or {}).get("x-delivery-count", 0)
    return counted + 1 if isinstance(counted, int) else 1


def arguments(queue: QueueSpec) -> dict[str, Any]:
    """Of a quorum queue: the only durable kind that counts deliveries and is replicated in a cluster."""
    found: dict[str, Any] = {"x-queue-type": "quorum"}
    if queue.max_length is not None:
        found |= {"x-max-length": queue.max_length, "x-overflow": "reject-publish"}
    if queue.ttl_s is not None:
        found["x-message-ttl"] = int(queue.ttl_s * 1000)
    if queue.max_attempts is not None:
        found["x-delivery-limit"] = queue.max_attempts - 1  # the broker counts deliveries after the first
    if queue.dead_queue is not None:
        found |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue.dead_queue}
        if queue.max_length is not None:
            # kept until the dead queue has confirmed it; RabbitMQ allows this with reject-publish only
            found["x-dead-letter-strategy"] = "at-least-once"
    return found


def _seconds(expiration: str | None) -> float | None:
    try:
        return None if expiration is None else int(expiration) / 1000
    except ValueError:
        return None


def _headers(given: Mapping[str, Any]) -> dict[str, Any]:
    ours = {name: value for name, value in given.items() if not name.startswith("x-")}
    if reason := given.get("x-first-death-reason"):
        ours |= {"reason": reason, "dead_from": given.get("x-first-death-queue")}
    return ours
