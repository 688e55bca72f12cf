"""A trace goes with what a message or request causes, through retries into the dead queue too. Runs on both brokers."""

from uuid import UUID, uuid4

import pytest
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from maveriq.bus import Encoded, Rejected, RequestDelivery
from maveriq.bus.envelope import Envelope
from maveriq.contracts import ChunksProduced, Fault, ReleaseAccepted, ReleaseRequested, RequestSubmitted
from maveriq.topology import MAX_ATTEMPTS
from maveriq.trace_context import Trace, begun
from maveriq.tracing import current, within
from tests.broker.sides import Echo, Side, until

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", state="congo=t61rcWkgMzE")


def release(id: UUID, **headers: object) -> Envelope:
    """As any AMQP producer sends it; the id is its deployment's too."""
    body = ReleaseRequested(deployment_id=id).model_dump_json().encode()
    return Envelope(body, topic=ReleaseRequested.topic, message_id=str(id), headers=headers)


async def test_what_a_handler_returns_and_publishes_goes_on_with_its_cause(side: Side, echo: Echo) -> None:
    bus, deployment_id = await side.bus(), uuid4()

    async def publish(message: ReleaseRequested) -> None:
        await bus.publish(ReleaseAccepted(deployment_id=deployment_id))

    await echo.start(bus)
    echo.behave = publish
    replies = await side.tap(ReleaseAccepted.topic)
    with capture_logs() as logged:
        await side.post(release(deployment_id, **TRACE.headers()), echo.queue, exchange="")
        await until(lambda: any(line.get("deployment_id") == str(deployment_id) for line in logged))
    found = [one for one in await side.waiting(replies) if one.correlation_id == str(deployment_id)]
    assert len(found) == 2
    assert all(TRACE.headers().items() <= one.headers.items() for one in found)


async def test_a_producers_current_trace_goes_with_what_it_publishes(side: Side, echo: Echo) -> None:
    bus, seen = await side.bus(), list[Trace | None]()

    async def note(message: ReleaseRequested) -> None:
        seen.append(current())

    await echo.start(bus)
    echo.behave = note
    with within(TRACE):
        await bus.publish(ReleaseRequested(deployment_id=uuid4()))
    await until(lambda: seen)
    assert seen == [TRACE]


@pytest.mark.parametrize("malformed", [{}, {"traceparent": "00-nonsense", "tracestate": "a=1"}])
async def test_a_message_without_a_trace_begins_one_which_its_retries_and_dead_letter_share(
    side: Side, echo: Echo, malformed: dict[str, object]
) -> None:
    id, seen = uuid4(), list[tuple[Trace | None, object]]()

    async def fail(message: ReleaseRequested) -> None:
        seen.append((current(), get_contextvars().get("trace_id")))
        raise ConnectionError("the store is away")

    await echo.start(await side.bus())
    echo.behave = fail
    await side.post(release(id, **malformed), echo.queue, exchange="")
    await until(lambda: len(seen) == MAX_ATTEMPTS)
    dead = list[Envelope]()
    await until_dead(side, echo, dead)
    new = begun(id)
    assert seen == [(new, new.trace_id)] * MAX_ATTEMPTS
    assert dead[0].headers["traceparent"] == new.headers()["traceparent"]
    assert "tracestate" not in dead[0].headers


async def test_a_rejected_message_keeps_its_trace_in_the_dead_queue(side: Side, echo: Echo) -> None:
    async def reject(message: ReleaseRequested) -> None:
        raise Rejected(Fault(field="x", problem="y", remedy="z"))

    await echo.start(await side.bus())
    echo.behave = reject
    await side.post(release(uuid4(), **TRACE.headers()), echo.queue, exchange="")
    dead = list[Envelope]()
    await until_dead(side, echo, dead)
    assert TRACE.headers().items() <= dead[0].headers.items()


async def test_a_request_carries_its_trace_to_the_worker_and_its_chunks_none(side: Side) -> None:
    bus, deployment_id = await side.bus(), uuid4()
    await bus.open_requests(deployment_id)
    asked = [RequestSubmitted(deployment_id=deployment_id, request_id=uuid4(), prompt="Hello") for _ in range(2)]
    taken = dict[UUID, tuple[Trace | None, object]]()

    def take(delivery: RequestDelivery) -> None:
        taken[delivery.request.request_id] = current(), get_contextvars().get("trace_id")

    with within(TRACE):
        await bus.submit(asked[0], reply_to="client.1")
    await bus.submit(asked[1], reply_to="client.1")
    consumer = await bus.consume_requests(deployment_id, take, slots=2)
    await until(lambda: len(taken) == 2)
    await consumer.cancel()
    new = begun(asked[1].request_id)
    assert taken == {
        asked[0].request_id: (TRACE, TRACE.trace_id),
        asked[1].request_id: (new, new.trace_id),
    }

    tap = await side.tap("no.such.topic")
    with within(TRACE):
        await bus.send(tap, Encoded(ChunksProduced.topic, b'{"chunks":[]}'), confirm=False)
        await bus.send(tap, Encoded(ChunksProduced.topic, b'{"chunks":[]}'), confirm=True)
    assert [chunks.headers for chunks in await side.waiting(tap)] == [{}, {}]


async def until_dead(side: Side, echo: Echo, dead: list[Envelope]) -> None:
    while not dead:
        dead += await side.waiting(echo.service.dead_queue)
