"""A producer's view of MaverIQ over the broker: register a model, deploy an intent, stream tokens, release."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from maveriq.bus import Bus
from maveriq.bus import connect as connect_bus
from maveriq.contracts import (
    ChatMessage,
    Chunk,
    Deployment,
    DeploymentChanged,
    Failure,
    Intent,
    IntentSubmitted,
    Model,
    ModelRegistered,
    ModelSubmitted,
    Priority,
    ReleaseRequested,
    RequestSubmitted,
    Sampling,
    State,
)
from maveriq.inbox import RequestFailed
from maveriq.route_book import RouteBook
from maveriq.streams import Streams
from maveriq.subscription import Refused, Subscription
from maveriq.topology import MAX_DEADLINE_S
from maveriq.tracing import chosen, within

__all__ = ["Client", "DeploymentFailedError", "Refused", "RequestFailed", "connect"]

Change = Callable[[Deployment], None]


class DeploymentFailedError(Exception):
    """An intent cannot be met; `failure` says why, and which nearest intents could be."""

    def __init__(self, deployment: Deployment, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.deployment = deployment
        self.failure = failure


@asynccontextmanager
async def connect(url: str, *, name: str = "client") -> AsyncGenerator["Client", None]:
    """A client on amqp://, amqps:// for as long as the block runs.

    Args:
        name: start of its mailbox's name, for people who look at the broker.
    """
    bus = await connect_bus(url)
    try:
        async with client_on(bus, name=name) as client:
            yield client
    finally:
        await bus.close()


@asynccontextmanager
async def client_on(bus: Bus, *, name: str = "client") -> AsyncGenerator["Client", None]:
    """A client on a bus that is somebody else's to close."""
    streams = await Streams.open(bus, name)
    client = Client(streams)
    try:
        yield client
    finally:
        await client.close()
        await streams.close()


class Client:
    """What a producer can ask for. Every method may be awaited many times at once."""

    def __init__(self, streams: Streams) -> None:
        """Use `connect`."""
        self._streams = streams
        self._book = RouteBook(streams)

    async def close(self) -> None:
        """Follow no deployment any more."""
        await self._book.close()

    async def register(self, model: Model) -> None:
        """Make a model known; intents may name it on return. Again replaces what was known.

        Raises:
            Refused.
        """
        async with self._streams.subscribed(ModelRegistered) as registered:
            await registered.publish(ModelSubmitted(model=model))
            async for event in registered:
                if event.model == model:
                    return

    async def deploy(
        self,
        intent: Intent,
        *,
        deployment_id: UUID | None = None,
        dry_run: bool = False,
        on_change: Change | None = None,
        traceparent: str | None = None,
    ) -> Deployment:
        """Ask for what the intent says and wait until it is served.

        Args:
            deployment_id: None draws one; asking twice with one id is asking once.
            dry_run: wait for the plan only; nothing is reserved or started.
            on_change: called with the deployment at each change of its state.
            traceparent: of the trace that this belongs to (W3C Trace Context); None: that of OpenTelemetry's current
                span, where this program has one.

        Raises:
            Refused: the intent makes no sense as it is.
            DeploymentFailedError: it does, but cannot be met.
        """
        wanted = deployment_id or uuid4()
        async with self._streams.following(wanted) as changes:
            with within(chosen(traceparent)):
                await changes.publish(IntentSubmitted(deployment_id=wanted, intent=intent, dry_run=dry_run))
            done = (State.PLANNED,) if dry_run else (State.READY, State.RELEASED)
            return await _until(changes, done, self._noting(on_change))

    async def release(self, deployment: Deployment | UUID, *, on_change: Change | None = None) -> Deployment:
        """Let what is queued be answered, stop the engines and give the memory back; returns when it is back.

        Raises:
            Refused: there is no such deployment.
            DeploymentFailedError: it had failed by itself.
        """
        deployment_id = deployment if isinstance(deployment, UUID) else deployment.deployment_id
        async with self._streams.following(deployment_id) as changes:
            await changes.publish(ReleaseRequested(deployment_id=deployment_id))
            return await _until(changes, (State.RELEASED,), on_change)

    def generate(
        self,
        deployment: Deployment | UUID,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        sampling: Sampling | None = None,
        priority: Priority = Priority.NORMAL,
        deadline_s: float = MAX_DEADLINE_S,
        traceparent: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """The answer to a prompt (text or token ids) or a chat, chunk by chunk; the last has a finish_reason.

        Leaving the iteration early cancels the request. Of a deployment on several GPU types it goes to the one that
        its size was planned for, where the deployment is given or this client deployed it; else any replica takes it.

        Args:
            traceparent: as in `deploy`.

        Raises:
            RequestFailed: there is no (further) answer.
            pydantic.ValidationError: not exactly one of prompt and messages is given.
        """
        request = RequestSubmitted(
            deployment_id=deployment if isinstance(deployment, UUID) else deployment.deployment_id,
            request_id=uuid4(),
            prompt=prompt if prompt is None or isinstance(prompt, str) else tuple(prompt),
            messages=None if messages is None else tuple(messages),
            sampling=sampling or Sampling(),
        )
        routes = self._book.of(deployment)
        return self._streams.generate(
            request, priority=priority, deadline_s=deadline_s, routes=routes, trace=chosen(traceparent)
        )

    def _noting(self, on_change: Change | None) -> Change:
        def note(deployment: Deployment) -> None:
            self._book.learn(deployment)
            if on_change is not None:
                on_change(deployment)

        return note


async def _until(
    changes: Subscription[DeploymentChanged], done: Sequence[State], on_change: Change | None
) -> Deployment:
    async for change in changes:
        deployment = change.deployment
        if on_change is not None:
            on_change(deployment)
        if deployment.state is State.FAILED and deployment.failure is not None:
            raise DeploymentFailedError(deployment, deployment.failure)
        if deployment.state in done:
            return deployment
    raise AssertionError("a subscription never ends by itself")
