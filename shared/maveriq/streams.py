"""One mailbox, many answers: sends requests and intents, and tells apart what comes back.

A client of the broker has one mailbox. The tokens of all its requests arrive there in one message per
engine step, so the way from there to the one who waits is a dictionary look-up and an append.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar
from uuid import UUID

from maveriq.bus.interface import Bus, Mailbox, QueueFull, Unavailable, Unroutable
from maveriq.contracts import (
    Chunk,
    ChunksProduced,
    DeploymentChanged,
    ErrorCode,
    InferenceError,
    Message,
    MessageRefused,
    Priority,
    RequestCancelled,
    RequestSubmitted,
    Route,
)
from maveriq.inbox import Inbox, RequestFailed
from maveriq.lengths import Lengths
from maveriq.routing import route
from maveriq.subscription import Refused, Subscription
from maveriq.topology import MAX_DEADLINE_S
from maveriq.trace_context import Trace
from maveriq.tracing import current, within

DEADLINE_GRACE_S = 5.0  # the broker's side answers an expired request; this is how much longer we wait for it

MAX_KNOWN = 1_000  # deployments whose lengths are remembered

M = TypeVar("M", bound=Message)


class Streams:
    """The requests and subscriptions of one client, all on one mailbox."""

    def __init__(self, bus: Bus) -> None:
        """Use `open`."""
        self.bus = bus
        self._mailbox: Mailbox | None = None
        self._inboxes: dict[int, Inbox] = {}  # by the request id as a number: a UUID hashes itself in Python
        self._subscriptions: dict[str, list[Subscription[Message]]] = {}
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._lengths: OrderedDict[UUID, Lengths] = OrderedDict()

    @classmethod
    async def open(cls, bus: Bus, name: str = "client") -> "Streams":
        streams = cls(bus)
        streams._mailbox = await bus.mailbox(streams._receive, name=name)
        return streams

    @property
    def address(self) -> str:
        """For the reply_to of what is sent."""
        assert self._mailbox is not None, "Streams is made by Streams.open"
        return self._mailbox.address

    async def close(self) -> None:
        """Close the mailbox; whoever still waits gets `interrupted`. The bus stays open."""
        for inbox in self._inboxes.values():
            inbox.fail(_interrupted("the client was closed", "keep the client open until the last chunk"))
        if self._goodbyes:
            await asyncio.wait(self._goodbyes, timeout=2)
        if self._mailbox is not None:
            await self._mailbox.close()

    async def generate(
        self,
        request: RequestSubmitted,
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = MAX_DEADLINE_S,
        routes: Sequence[Route] = (),
        trace: Trace | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Submit on the first step, then yield chunks: every token once, in order; the last has a finish_reason.

        Leaving early cancels the request.

        Args:
            deadline_s: from the first step, for the whole answer.
            routes: of its deployment; empty: any replica takes it.
            trace: that it belongs to; None: the one that is current at the first step.

        Raises:
            RequestFailed: there is no (further) answer.
        """
        lengths = self._lengths_of(request.deployment_id, routes) if routes else None
        inbox = Inbox(deadline_s + DEADLINE_GRACE_S, _late(deadline_s))
        self._inboxes[request.request_id.int] = inbox
        submitted = answered = False
        try:
            lanes = () if lengths is None else route(request, routes, lengths)
            with within(trace or current()):
                await self._submit(request, priority, deadline_s, lanes)
            submitted = True
            while not answered:
                for chunk in await inbox.take():
                    answered = chunk.finish_reason is not None
                    if lengths is not None and chunk.usage is not None:
                        lengths.learn(request, chunk.usage, chunk.finish_reason)
                    yield chunk
        except RequestFailed as failed:
            # these two can be ours alone: the worker may still be at it
            answered = failed.error.code not in (ErrorCode.INTERRUPTED, ErrorCode.DEADLINE_EXCEEDED)
            raise
        finally:
            inbox.close()
            self._inboxes.pop(request.request_id.int, None)
            if submitted and not answered:
                self._cancel(request)

    def _lengths_of(self, deployment_id: UUID, routes: Sequence[Route]) -> Lengths:
        lengths = self._lengths.setdefault(deployment_id, Lengths())
        self._lengths.move_to_end(deployment_id)
        if len(self._lengths) > MAX_KNOWN:
            self._lengths.popitem(last=False)
        lengths.plan_for(routes)
        return lengths

    async def _submit(
        self, request: RequestSubmitted, priority: Priority, deadline_s: float, lanes: Sequence[str]
    ) -> None:
        """To the first lane that takes it; a full one, or one gone a moment ago, is no reason to fail."""
        try:
            for gpu_type in lanes:
                with suppress(QueueFull, Unroutable):
                    await self._queue(request, priority, deadline_s, gpu_type)
                    return
            await self._queue(request, priority, deadline_s, None)
        except QueueFull as full:
            raise _failed(
                ErrorCode.QUEUE_FULL, "too many requests wait for this deployment", "try again later"
            ) from full
        except Unroutable as gone:
            raise _failed(
                ErrorCode.DEPLOYMENT_GONE, "this deployment takes no requests", "deploy the model", "deployment_id"
            ) from gone
        except Unavailable as lost:
            raise RequestFailed(_interrupted("the broker did not confirm the request", "send it again")) from lost

    async def _queue(
        self, request: RequestSubmitted, priority: Priority, deadline_s: float, gpu_type: str | None
    ) -> None:
        await self.bus.submit(
            request, reply_to=self.address, priority=priority, deadline_s=deadline_s, gpu_type=gpu_type
        )

    @asynccontextmanager
    async def following(self, deployment_id: UUID) -> AsyncGenerator[Subscription[DeploymentChanged], None]:
        """The changes of one deployment. Publish the intent through it: nothing is missed then."""
        async with self.subscribed(DeploymentChanged, f"{DeploymentChanged.topic}.{deployment_id}") as changes:
            yield changes

    @asynccontextmanager
    async def subscribed(
        self, message: type[M], routing_key: str | None = None
    ) -> AsyncGenerator[Subscription[M], None]:
        """What is published under the routing key (by default the topic), while the block runs."""
        assert self._mailbox is not None
        key = routing_key or message.topic
        subscription: Subscription[Message] = Subscription(self.bus, self.address)
        self._subscriptions.setdefault(key, []).append(subscription)
        try:
            await self._mailbox.bind(key)
            yield subscription  # type: ignore[misc]  # pyright: ignore[reportReturnType]  # only M has this key
        finally:
            others = self._subscriptions[key]
            others.remove(subscription)
            if not others:
                del self._subscriptions[key]
                with suppress(Unavailable):
                    await self._mailbox.unbind(key)

    def _receive(self, message: Message) -> None:
        """The mailbox's callback: hot, once per engine step."""
        if type(message) is ChunksProduced:
            inboxes = self._inboxes
            for chunk in message.chunks:
                inbox = inboxes.get(chunk.request_id.int)
                if inbox is not None:  # else cancelled by us a moment ago
                    inbox.put(chunk)
        elif type(message) is MessageRefused:
            self._refuse(message)
        else:
            for subscription in self._subscriptions.get(message.routing_key, ()):
                subscription.put(message)

    def _refuse(self, refused: MessageRefused) -> None:
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                if refused.refused_id in subscription.sent:
                    subscription.put(Refused(refused.faults))
        with suppress(ValueError):
            inbox = self._inboxes.get(UUID(refused.refused_id).int)
            if inbox is not None:
                first = refused.faults[0]
                inbox.fail(
                    InferenceError(
                        code=ErrorCode.INVALID_REQUEST, field=first.field, problem=first.problem, remedy=first.remedy
                    )
                )

    def _cancel(self, request: RequestSubmitted) -> None:
        """Tell the worker that nobody waits any more. Best effort: not known to it is as good."""
        goodbye = asyncio.ensure_future(
            self._publish_cancelled(
                RequestCancelled(deployment_id=request.deployment_id, request_id=request.request_id)
            )
        )
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)

    async def _publish_cancelled(self, cancelled: RequestCancelled) -> None:
        with suppress(Unroutable, QueueFull, Unavailable):
            await self.bus.publish(cancelled)


def _failed(code: ErrorCode, problem: str, remedy: str, field: str = "") -> RequestFailed:
    return RequestFailed(InferenceError(code=code, field=field, problem=problem, remedy=remedy))


def _interrupted(problem: str, remedy: str) -> InferenceError:
    return InferenceError(code=ErrorCode.INTERRUPTED, problem=problem, remedy=remedy)


def _late(deadline_s: float) -> InferenceError:
    return InferenceError(
        code=ErrorCode.DEADLINE_EXCEEDED,
        field="deadline",
        problem=f"no full answer within {deadline_s:g} s",
        remedy="ask for fewer tokens, or allow more time",
    )
