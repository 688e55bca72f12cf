"""The broker as a service or a producer sees it: one interface, on RabbitMQ and in-process."""

from maveriq.bus.connecting import connect
from maveriq.bus.handler import Handler, Replies
from maveriq.bus.insisting import publish_until_kept
from maveriq.bus.interface import (
    Bus,
    DeadRequest,
    Encoded,
    Mailbox,
    MailboxGone,
    QueueFull,
    Rejected,
    RequestConsumer,
    RequestDelivery,
    Unavailable,
    Unroutable,
)

__all__ = [
    "Bus", "DeadRequest", "Encoded", "Handler", "Mailbox", "MailboxGone", "QueueFull", "Rejected", "Replies",
    "RequestConsumer", "RequestDelivery", "Unavailable", "Unroutable", "connect",
    "publish_until_kept",
]  # fmt: skip
