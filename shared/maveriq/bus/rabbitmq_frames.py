"""Envelopes and queues in AMQP's words. Pure: ours in, properties and arguments out, and back."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pamqp.frame
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from maveriq.bus.envelope import Envelope
from maveriq.bus.queues import QueueSpec

TRANSIENT, PERSISTENT = 1, 2
BODY_FRAME, FRAME_END = b"\x03", b"\xce"


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


def to_mailbox(channel: int, address: str, sent: Envelope, part_bytes: int, *, returnable: bool) -> bytes:
    """What sends a transient message to a queue by its name, as it goes over the wire.

    A general AMQP library spends 80 us on each; a worker sends one message a client and engine step. All but the
    body and its size is the same each time.

    Args:
        part_bytes: of the body that one frame may carry.
        returnable: it comes back, with its message id, where there is no such queue.
    """
    around = _around.__wrapped__ if returnable else _around  # ids are unique: no use to remember them
    before, after, start = around(channel, address, sent.topic, sent.message_id if returnable else None)
    frames = [before, len(sent.body).to_bytes(8, "big"), after]
    for at in range(0, len(sent.body), part_bytes):
        part = sent.body[at : at + part_bytes]
        frames += (start, len(part).to_bytes(4, "big"), part, FRAME_END)
    return b"".join(frames)


@lru_cache(maxsize=1024)
def _around(channel: int, address: str, topic: str | None, message_id: str | None) -> tuple[bytes, bytes, bytes]:
    """The method and header frames up to the body's size, and from there; then the start of a body frame."""
    method = Basic.Publish(exchange="", routing_key=address, mandatory=message_id is not None)
    given = Basic.Properties(
        content_type="application/json", delivery_mode=TRANSIENT, message_type=topic, message_id=message_id
    )
    header = pamqp.frame.marshal(ContentHeader(properties=given, body_size=0), channel)
    size_at = 7 + 4  # frame type, channel and length; class and weight
    before = pamqp.frame.marshal(method, channel) + header[:size_at]
    return before, header[size_at + 8 :], BODY_FRAME + channel.to_bytes(2, "big")


def envelope(message: DeliveredMessage) -> Envelope:
    """What arrived. The broker's own headers are put in our words: `reason` and `dead_from`."""
    return unpack(message.header.properties, message.body)


def unpack(given: Basic.Properties, body: bytes) -> Envelope:
    return Envelope(
        body=body,
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
