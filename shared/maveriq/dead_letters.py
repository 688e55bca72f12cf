"""Lists the messages that a service could not handle, with the reasons, or returns them to where they came from.

    MAVERIQ_AMQP_URL=amqp://... python -m maveriq.dead_letters SERVICE [--back]

Each is published anew, to its dead queue again or to where it came from, confirmed, and only then taken out: whenever
this ends, none is lost. (Handed out and given back instead, RabbitMQ 4 would drop it the twentieth time.)
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError

from maveriq.agreed_settings import amqp_url
from maveriq.settings import BadSetting
from maveriq.topology import SERVICES

_OF_THAT_HANDLING = ("reason", "dead_from")  # headers


@dataclass(frozen=True, slots=True)
class DeadLetter:
    topic: str
    message_id: str
    deployment_id: str
    came_from: str
    """Its queue."""
    reason: str
    is_back: bool

    def __str__(self) -> str:
        where = "returned to" if self.is_back else "from"
        about = f", deployment {self.deployment_id}" if self.deployment_id else ""
        return f"{self.topic} {self.message_id}{about}\n  {where} {self.came_from}: {self.reason}"


async def dead_letters(url: str, queue: str, *, back: bool) -> AsyncGenerator[DeadLetter, None]:
    """Those that are in a dead queue now, oldest first.

    Args:
        back: return each to the queue that it came from; where that is gone it stays.
    """
    async with await aio_pika.connect(url) as link:
        channel = await link.channel(publisher_confirms=True, on_return_raises=True)
        dead = await channel.get_queue(queue)
        for _ in range(dead.declaration_result.message_count or 0):
            message = await dead.get(fail=False)
            if message is None:
                return
            origin = _said(message.headers, "dead_from", "x-first-death-queue")
            is_back = False
            if back and origin:
                try:
                    await channel.default_exchange.publish(_anew(message, _OF_THAT_HANDLING), origin)
                    is_back = True
                except DeliveryError:
                    pass  # its queue is gone, or full
            if not is_back:
                await channel.default_exchange.publish(_anew(message), queue)
            await message.ack()
            yield DeadLetter(
                topic=message.type or "message",
                message_id=message.message_id or "without an id",
                deployment_id=message.correlation_id or "",
                came_from=origin or "nobody knows where",
                reason=_said(message.headers, "reason", "x-first-death-reason") or "no reason was given",
                is_back=is_back,
            )


def _said(headers: Mapping[str, Any], *names: str) -> str:
    """The first of these headers: ours, or the broker's own where it gave the message up by itself."""
    return next((str(headers[name]) for name in names if headers.get(name)), "")


def _anew(message: AbstractIncomingMessage, without: tuple[str, ...] = ()) -> aio_pika.Message:
    return aio_pika.Message(
        message.body,
        headers={
            name: value
            for name, value in message.headers.items()
            if name not in without and (not name.startswith("x-") or (not without and "first-death" in name))
        },
        content_type=message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
    )


async def _tell(url: str, queue: str, *, back: bool) -> None:
    num = 0
    async for letter in dead_letters(url, queue, back=back):
        num += 1
        print(letter)
    print(f"{num} in {queue}" if not back else f"{num} looked at in {queue}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("service", choices=[service.name for service in SERVICES])
    options.add_argument("--back", action="store_true", help="return them, once their cause is mended")
    chosen = options.parse_args()
    try:
        asyncio.run(_tell(amqp_url(os.environ), f"{chosen.service}.dead", back=chosen.back))
    except (BadSetting, OSError, aio_pika.exceptions.AMQPError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
