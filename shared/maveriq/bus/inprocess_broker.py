"""A broker in memory, as strict as RabbitMQ: bounds, deadlines, redelivery, dead letters, routing."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from maveriq.bus.connection import Taking
from maveriq.bus.envelope import Envelope
from maveriq.bus.interface import QueueFull, Unroutable
from maveriq.bus.queues import QueueSpec


@dataclass(slots=True, eq=False)
class Stored:
    """A message in a queue."""

    envelope: Envelope
    deliveries: int = 0
    expiry: asyncio.TimerHandle | None = None


class Consumer:
    """Takes from one queue while fewer than its prefetch are in hand since it was last resumed."""

    def __init__(self, queue: "Queue", receive: Callable[["Held"], Awaitable[None]], taking: Taking) -> None:
        self.queue = queue
        self.rank = taking.rank
        self.in_hand: set[Held] = set()
        self._prefetch = taking.prefetch
        self._before: set[Held] = set()
        """In hand when it was last resumed."""
        self._receive = receive
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        return len(self.in_hand - self._before) < self._prefetch

    def deliver(self, stored: Stored) -> None:
        held = Held(self, stored)
        self.in_hand.add(held)
        task = asyncio.ensure_future(self._receive(held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def pause(self) -> None:
        """Take no more for now. What is in hand stays in hand."""
        await self.cancel()

    async def resume(self) -> None:
        """Take as many as at first, whatever is in hand from before."""
        if self.queue.deleted:
            return
        self._before = set(self.in_hand)
        if self not in self.queue.consumers:
            self.queue.consumers.append(self)
        self.queue.dispatch()

    async def cancel(self) -> None:
        """Take no more. What is in hand stays in hand."""
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)

    async def die(self) -> None:
        """What a lost connection does: handlers end, and what was in hand is the next consumer's."""
        await self.cancel()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for held in list(self.in_hand):
            await held.requeue()


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A `Delivery`."""

    consumer: Consumer
    stored: Stored

    @property
    def envelope(self) -> Envelope:
        return self.stored.envelope

    @property
    def queue(self) -> str:
        return self.consumer.queue.spec.name

    @property
    def attempt(self) -> int:
        return self.stored.deliveries + 1

    async def ack(self) -> None:
        self.consumer.in_hand.discard(self)
        self.consumer.queue.dispatch()

    async def requeue(self) -> None:
        if self in self.consumer.in_hand:
            self.consumer.in_hand.discard(self)
            self.stored.deliveries += 1
            self.consumer.queue.take_back(self.stored)


@dataclass(slots=True, eq=False)
class Queue:
    spec: QueueSpec
    broker: "InProcessBroker"
    waiting: deque[Stored] = field(default_factory=deque[Stored])
    consumers: list[Consumer] = field(default_factory=list[Consumer])
    deleted: bool = False

    @property
    def full(self) -> bool:
        return self.spec.max_length is not None and len(self.waiting) >= self.spec.max_length

    def put(self, envelope: Envelope) -> None:
        stored = Stored(envelope)
        limits = [limit for limit in (envelope.expires_s, self.spec.ttl_s) if limit is not None]
        if limits:
            stored.expiry = asyncio.get_running_loop().call_later(min(limits), self._expire, stored)
        self.waiting.append(stored)
        self.dispatch()

    def take_back(self, stored: Stored) -> None:
        if self.deleted:
            return
        if self.spec.max_attempts is not None and stored.deliveries >= self.spec.max_attempts:
            self._dead_letter(stored, "delivery_limit")
            return
        self.waiting.appendleft(stored)
        if stored.expiry is not None and stored.expiry.when() <= asyncio.get_running_loop().time():
            self._expire(stored)
        self.dispatch()

    def dispatch(self) -> None:
        while self.waiting:
            consumer = min((c for c in self.consumers if c.has_room), key=lambda c: c.rank, default=None)
            if consumer is None:
                return
            self.consumers.remove(consumer)  # round robin
            self.consumers.append(consumer)
            consumer.deliver(self.waiting.popleft())

    def _expire(self, stored: Stored) -> None:
        if stored in self.waiting:
            self.waiting.remove(stored)
            self._dead_letter(stored, "expired")

    def _dead_letter(self, stored: Stored, reason: str) -> None:
        if stored.expiry is not None:
            stored.expiry.cancel()
        dead = self.broker.queues.get(self.spec.dead_queue or "")
        if dead is not None:
            attempt = stored.deliveries if reason == "delivery_limit" else stored.deliveries + 1
            headers = {
                **stored.envelope.headers,
                "reason": reason,
                "dead_from": self.spec.name,
                "attempt": attempt,
            }
            dead.put(replace(stored.envelope, headers=headers, expires_s=None))


class InProcessBroker:
    """The queues that all buses of this process share."""

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self._bindings: set[tuple[str, str]] = set()

    def declare(self, spec: QueueSpec) -> Queue:
        queue = self.queues.setdefault(spec.name, Queue(spec, self))
        for key in spec.bindings:
            self.bind(spec.name, key)
        return queue

    def bind(self, queue: str, key: str) -> None:
        self._bindings.add((key, queue))

    def unbind(self, queue: str, key: str) -> None:
        self._bindings.discard((key, queue))

    def delete(self, name: str) -> None:
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        queue.deleted = True
        self._bindings = {binding for binding in self._bindings if binding[1] != name}
        for stored in queue.waiting:
            if stored.expiry is not None:
                stored.expiry.cancel()
        queue.waiting.clear()
        queue.consumers.clear()

    def post(self, envelope: Envelope, key: str, *, exchange: str) -> None:
        """To the queue of that name, or (with an exchange) to each that is bound to a matching key.

        Raises:
            Unroutable: to none.
            QueueFull: one of them refuses; the others keep it, as on RabbitMQ.
        """
        names = (
            {queue for pattern, queue in self._bindings if matches(pattern.split("."), key.split("."))}
            if exchange
            else {key}
        )
        queues = [self.queues[name] for name in sorted(names) if name in self.queues]
        if not queues:
            raise Unroutable(f"no queue takes {key}")
        full = [queue for queue in queues if queue.full]
        for queue in queues:
            if queue not in full:
                queue.put(envelope)
        if full:
            raise QueueFull(f"{full[0].spec.name} holds {full[0].spec.max_length} messages")

    def dead_letters(self, queue: str) -> tuple[Envelope, ...]:
        """What waits in a queue, for people and tests to read."""
        return tuple(stored.envelope for stored in self.queues[queue].waiting)


def matches(pattern: list[str], key: list[str]) -> bool:
    """Whether a topic exchange takes `key` to what is bound with `pattern`: * is one word, # is any number."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(matches(pattern[1:], key[skip:]) for skip in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and matches(pattern[1:], key[1:])
