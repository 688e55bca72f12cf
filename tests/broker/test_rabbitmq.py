"""What only a real broker can show: its death and return, a killed process, and clients that are not ours."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import pika
import pika.adapters.blocking_connection
import pytest

from maveriq.bus import RequestDelivery, Unavailable, connect
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.contracts import Message, Priority, ReleaseAccepted, ReleaseRequested, RequestSubmitted
from maveriq.topology import EXCHANGE, MAX_DEADLINE_S, request_queue
from tests.broker.sides import PATIENCE_S, Echo, RabbitMqSide, until
from tests.servers import RabbitMq

KILLED_CONSUMER = """
import asyncio, sys
from uuid import UUID
from maveriq.bus import connect

async def main():
    bus = await connect(sys.argv[1])
    await bus.consume_requests(UUID(sys.argv[2]), lambda d: print(d.attempt, flush=True), slots=1)
    await asyncio.Event().wait()

asyncio.run(main())
"""

# RabbitMQ 3.10 (ra's registry, a dets file) writes the name of a new quorum queue to disk within 3 s: killed
# earlier, a single node comes back with the queue's name and without its messages
REGISTRY_S = 4.0


@pytest.fixture
async def rabbitmq(rabbitmq_server_url: str) -> AsyncIterator[RabbitMqSide]:
    side = RabbitMqSide(rabbitmq_server_url)
    yield side
    await side.close()


@pytest.fixture
def plain(rabbitmq_server_url: str) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """A channel of a client that knows nothing of ours."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_server_url))
    yield connection.channel()
    connection.close()


async def test_the_request_of_a_killed_process_goes_to_the_next(
    rabbitmq: RabbitMqSide, rabbitmq_server_url: str
) -> None:
    bus, deployment_id = await rabbitmq.bus(), uuid4()
    await bus.open_requests(deployment_id)
    request = RequestSubmitted(deployment_id=deployment_id, request_id=uuid4(), prompt="Hello")
    await bus.submit(request, reply_to="c")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED_CONSUMER, rabbitmq_server_url, str(deployment_id), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()

    taken: list[RequestDelivery] = []
    await bus.consume_requests(deployment_id, taken.append, slots=1)
    await until(lambda: taken)
    assert (taken[0].request, taken[0].attempt) == (request, 2)
    await _close(rabbitmq, deployment_id)


async def test_a_killed_broker_loses_nothing_that_it_confirmed_and_all_comes_back() -> None:
    """One story, for the broker takes seconds to start."""
    with RabbitMq() as server:
        side = RabbitMqSide(server.url)
        echo = Echo(side)
        await echo.start(await side.bus())
        bus, heard = await side.bus(), list[Message]()
        mailbox = await (await side.bus()).mailbox(heard.append)
        await mailbox.bind("release.accepted.v1")
        deployment_id, taken = uuid4(), list[RequestDelivery]()
        await bus.open_requests(deployment_id)
        requests = [RequestSubmitted(deployment_id=deployment_id, request_id=uuid4(), prompt="x") for _ in range(3)]
        for request in requests:
            await bus.submit(request, reply_to=mailbox.address)
        await bus.consume_requests(deployment_id, taken.append, slots=1)
        await until(lambda: taken)

        await asyncio.sleep(REGISTRY_S)
        server.kill()
        releases = [ReleaseRequested(deployment_id=uuid4()) for _ in range(20)]
        publishing = asyncio.gather(*(bus.publish(release, timeout_s=60) for release in releases))
        with pytest.raises(Unavailable):
            await bus.publish(ReleaseRequested(deployment_id=uuid4()), timeout_s=0.3)
        await until(lambda: not bus.connected)
        await asyncio.to_thread(server.start)
        await publishing

        # confirmed before the death: all still there, and the one in hand is handed out again
        await taken[0].ack()  # of a connection that is gone: harmless
        for count in (2, 3, 4):  # the broker may hand out others before it misses the dead consumer
            await until(lambda count=count: len(taken) == count)
            await taken[-1].ack()
        again = {delivery.request.request_id: delivery.attempt for delivery in taken[1:]}
        assert again == {requests[0].request_id: 2, requests[1].request_id: 1, requests[2].request_id: 1}
        # published during the outage: each is handled
        await until(lambda: set(releases) <= set(echo.taken))
        # the mailbox comes back with its address and its bindings; an event sent before that passes it by
        async with asyncio.timeout(PATIENCE_S):
            while ReleaseAccepted(deployment_id=deployment_id) not in heard:
                await bus.publish(ReleaseRequested(deployment_id=deployment_id))
                await asyncio.sleep(0.1)
        direct = ReleaseAccepted(deployment_id=uuid4())
        await bus.send(mailbox.address, direct, confirm=True)
        await until(lambda: direct in heard)
        await echo.stop()
        await side.close()


async def test_a_plain_client_publishes_a_message_and_is_heard(
    rabbitmq: RabbitMqSide, plain: pika.adapters.blocking_connection.BlockingChannel
) -> None:
    echo = Echo(rabbitmq)
    await echo.start(await rabbitmq.bus())
    answers = plain.queue_declare("", exclusive=True).method.queue
    plain.queue_bind(answers, EXCHANGE, "release.accepted.v1")
    deployment_id = str(uuid4())
    plain.basic_publish(EXCHANGE, "release.requested.v1", json.dumps({"deployment_id": deployment_id}).encode())
    plain.basic_publish(
        "", echo.queue, b'{"deployment": 1}', pika.BasicProperties(reply_to=answers, message_id="order-17")
    )
    await until(lambda: echo.taken)

    heard = await asyncio.to_thread(_take, plain, answers, 2, deployment_id)
    (accepted,) = [body for topic, body in heard if topic == "release.accepted.v1"]
    (refused,) = [body for topic, body in heard if topic == "message.refused.v1"]
    assert accepted == {"deployment_id": deployment_id}
    assert refused["refused_id"] == "order-17"
    assert {fault["field"] for fault in refused["faults"]} == {"deployment_id", "deployment"}
    await echo.stop()


async def test_a_plain_client_submits_a_request_and_reads_the_chunks(
    rabbitmq: RabbitMqSide, plain: pika.adapters.blocking_connection.BlockingChannel
) -> None:
    bus, deployment_id, taken = await rabbitmq.bus(), uuid4(), list[RequestDelivery]()
    await bus.open_requests(deployment_id)
    await bus.consume_requests(deployment_id, taken.append, slots=4)
    answers = plain.queue_declare("", exclusive=True).method.queue
    body = json.dumps({"deployment_id": str(deployment_id), "request_id": str(uuid4()), "prompt": "Hello"}).encode()
    queue = request_queue(deployment_id, Priority.HIGH)
    for properties in (
        pika.BasicProperties(reply_to=answers),
        pika.BasicProperties(reply_to=answers, expiration="20000"),
        pika.BasicProperties(reply_to=answers, headers={"deadline": int(time.time()) + 9}),
    ):
        plain.basic_publish("", queue, body, properties)
    await until(lambda: len(taken) == 3)

    allowed_s = [delivery.deadline - time.time() for delivery in taken]
    assert allowed_s == pytest.approx([MAX_DEADLINE_S, 20, 9], abs=3)
    assert {delivery.reply_to for delivery in taken} == {answers}
    await bus.send(answers, ReleaseAccepted(deployment_id=deployment_id), confirm=True)
    ((topic, _),) = await asyncio.to_thread(_take, plain, answers, 1)
    assert topic == "release.accepted.v1"
    await _close(rabbitmq, deployment_id)


async def test_no_broker_is_an_error_that_names_the_address_and_no_password() -> None:
    with pytest.raises(Unavailable, match=r"amqp://127\.0\.0\.1:1\b") as failed:
        await connect("amqp://guest:secret@127.0.0.1:1/")
    assert "secret" not in str(failed.value)


async def test_a_closed_bus_says_so(rabbitmq_server_url: str) -> None:
    bus = await RabbitMqBus.connect(rabbitmq_server_url)
    await bus.close()
    assert not bus.connected
    with pytest.raises(Unavailable):
        await bus.publish(ReleaseRequested(deployment_id=uuid4()))


def _take(
    channel: pika.adapters.blocking_connection.BlockingChannel, queue: str, count: int, about: str | None = None
) -> list[tuple[str | None, dict[str, object]]]:
    """The next messages; where `about` names a deployment, those of others are passed over, as the echo's first."""
    found: list[tuple[str | None, dict[str, object]]] = []
    for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=15):
        if properties is None or body is None:
            break
        value: dict[str, object] = json.loads(body)
        if about is None or value.get("deployment_id") in (None, about):
            found.append((properties.type, value))
        if len(found) == count:
            break
    return found


async def _close(side: RabbitMqSide, deployment_id: UUID) -> None:
    for priority in Priority:
        await side.delete(request_queue(deployment_id, priority))
